"""CoOp: a learned context in front of every text.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv 2109.01134. A text
[start, w_1 .. w_n, end] becomes

    [start, v_1 .. v_b, w_1 .. w_n, end]          v in R^{b x D_t}, one context for all texts

with position embeddings along the new sequence. In the paper the words are a class name; here
they are whatever text is encoded, so in retrieval every caption gets the context in front.

Trained: b D_t values; with b = 16 on CLIP ViT-B/32 8,192, 0.005 % of the adapted model. The vision
tower is not touched. The start is not the frozen model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossadapt.adapters.plan import Plan, Prompts
from crossadapt.adapters.registry import register
from crossadapt.adapters.words import word_vectors
from crossadapt.errors import UserError
from crossadapt.layers.prompts import PromptBank

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class CoOpConfig:
    """Options of CoOp."""

    tokens: int = 16
    """Context tokens b. The paper uses 16, or the 4 of the words it starts from."""
    words: str = ""
    """Words whose first tokens the context starts from, such as 'a photo of a' with 4 tokens;
    empty for a random start, N(0, 0.02^2)."""

    def __post_init__(self) -> None:
        """Refuse a context without tokens."""
        if self.tokens < 1:
            raise UserError(f"tokens is {self.tokens}", where="tokens", fix="give 1 or more")


@register("coop", CoOpConfig)
def plan(backbone: Backbone, config: CoOpConfig) -> Plan:
    """One layer of prompts in the text tower."""
    bank = PromptBank(1, config.tokens, backbone.width("text"))
    bank.start_from(word_vectors(backbone, config.words, config.tokens))
    return [Prompts("text", config.tokens, 1, bank)]
