"""MaPLe: text prompts in the first layers, and vision prompts made from them by linear maps.

Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117. For the first J
layers of both towers, i = 0 .. J-1, b tokens per layer:

    text     P_i in R^{b x D_t}, learned; stands between the start token and the words
    vision   F_i(P_i) = P_i W_i^T + a_i, in R^{b x D_v}; follows the patches

P_0 joins the sequence, P_1 .. P_{J-1} overwrite it at the input of their layers, later layers
carry it along. F_0 is drawn by itself, F_1 .. F_{J-1} start as copies of one map.

Trained: J b D_t + J (D_t D_v + D_v) values; with b = 2, J = 9 on CLIP ViT-B/16 3,555,072 (2.32 %
of the adapted model). `coupled` off trains vision prompts of their own instead, J b (D_t + D_v)
values: independent vision-language prompting. The start is not the frozen model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossadapt.adapters.plan import Plan, Prompts
from crossadapt.adapters.registry import register
from crossadapt.adapters.words import word_vectors
from crossadapt.errors import UserError
from crossadapt.layers.prompts import CoupledPrompts, PromptBank

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

PAPER_DEPTH = 9


@dataclass(frozen=True)
class MaPLeConfig:
    """Options of MaPLe."""

    tokens: int = 2
    """Prompt tokens b per layer and tower."""
    depth: int | None = None
    """Layers J with prompts of their own; unset: 9 as in the paper, or all layers of the
    shallower tower if it has fewer."""
    words: str = "a photo of a"
    """Words whose first tokens the first layer's prompts start from; empty for a random start."""
    coupled: bool = True
    """Make the vision prompts from the text prompts; off: vision prompts of their own."""

    def __post_init__(self) -> None:
        """Refuse prompts without tokens or layers."""
        if self.tokens < 1:
            raise UserError(f"tokens is {self.tokens}", where="tokens", fix="give 1 or more")
        if self.depth is not None and self.depth < 1:
            raise UserError(f"depth is {self.depth}", where="depth", fix="give 1 or more")


@register("maple", MaPLeConfig)
def plan(backbone: Backbone, config: MaPLeConfig) -> Plan:
    """Prompts in both towers, those of the vision tower coupled unless told otherwise."""
    coupled = config.coupled
    return [*coupled_prompts(backbone, config.tokens, config.depth, config.words, coupled=coupled)]


def coupled_prompts(
    backbone: Backbone, tokens: int, depth: int | None, words: str, *, coupled: bool = True
) -> list[Prompts]:
    """The prompts of both towers, text first; see `MaPLeConfig` for the arguments.

    Raises:
        UserError: deeper than the shallower tower, or too few words.
    """
    most = min(backbone.depth("vision"), backbone.depth("text"))
    depth = min(PAPER_DEPTH, most) if depth is None else depth
    if depth > most:
        raise UserError(
            f"depth is {depth} but the shallower tower has {most} layers",
            where="depth",
            fix=f"give at most {most}",
        )
    widths = backbone.width("text"), backbone.width("vision")
    text = PromptBank(depth, tokens, widths[0])
    text.start_from(word_vectors(backbone, words, tokens))
    vision = CoupledPrompts(text, *widths) if coupled else PromptBank(depth, tokens, widths[1])
    return [Prompts("text", tokens, depth, text), Prompts("vision", tokens, depth, vision)]
