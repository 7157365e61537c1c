"""APoLLo: coupled prompts, cross-attention adapters, and agreement with a second, frozen view.

Chowdhury, Nag and Manocha, "APoLLo: Unified Adapter and Prompt Learning for Vision Language
Models", EMNLP 2023, arXiv 2312.01564. The prompts are MaPLe's. On the pooled features, E channels,
stands one adapter per modality; for picture i with M texts, x the stream and y the other one:

    x1 = LN(x + SA(x, x, x)); x2 = LN(x1 + CA(x1, y, y)); x3 = LN(x2 + FFN(x2))
    z  = x + eta (x3 - x)                         eta starts at 0: step 0 is MaPLe
    score(i, j) = cos(z_i, z_ij)                  text j as adapted for picture i

    loss = L_sim(scores) + L_co2(pictures) + L_co2(texts)          all weights 1
    L_co2 = contrast + 2 JS, see `crossadapt.layers.consistency`, against the frozen model's
            features of a second view of the same rows

Trained: MaPLe's values and 2 (2 (4E^2 + 4E) + 2EH + H + E + 6E) + 2 in the adapters; on CLIP
ViT-B/16 (b = 2, J = 9, E = 512, H = 2048) 3,555,072 + 8,408,066 = 11,963,138. The released code's
own form of the adapters is ``adapter="released"``.

A score belongs to a pair within a list of texts, so no index can hold it. What `encode_image` and
`encode_text` give are the prompted features in front of the adapters; ours is `plain_weight`, which
trains their cosines too, so that they can be searched and the scores used for re-ranking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossadapt.adapters.plan import Companion, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError, did_you_mean
from crossadapt.layers.consistency import DIVERGENCES, consistency, contrast
from crossadapt.layers.cross_attention import SeparateAdapters, SharedAdapters
from crossadapt.methods.maple import coupled_prompts

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


PAPER_HEADS = 8


@dataclass(frozen=True)
class ApolloConfig:
    """Options of APoLLo."""

    tokens: int = 2
    """Prompt tokens per layer and tower."""
    depth: int | None = None
    """Layers with prompts of their own; unset: 9, or all layers of the shallower tower."""
    words: str = "a photo of a"
    """Words whose first tokens the first layer's prompts start from; empty for a random start."""
    adapter: Literal["paper", "released"] = "paper"
    """'paper': separate attentions in sequence, each picture by itself. 'released': the authors'
    code, one attention for both terms over the whole batch, so that scores of a picture depend on
    the other pictures; for comparison only."""
    heads: int | None = None
    """Attention heads of the adapters, a divisor of the size of the shared space; unset: 8 as in
    the authors' code, or the largest divisor below."""
    hidden: int = 4
    """Width of the adapters' feed-forward part, as a multiple of the shared space."""
    dropout: float = 0.1
    """Dropout probability on the adapters' residual branches."""
    image_weight: float = 1.0
    """Weight of the agreement with the second view of the picture; 0 leaves it out."""
    text_weight: float = 1.0
    """Weight of the agreement with the second view of the text; 0 leaves it out."""
    temperature: float = 0.2
    """Temperature T of the contrast with the second view."""
    consistency_temperature: float = 0.04
    """Temperature T_c of the similarity profiles."""
    divergence: Literal["js", "forward-kl", "reverse-kl", "symmetric-kl", "renyi"] = "js"
    """How two similarity profiles are compared."""
    plain_weight: float = 1.0
    """Weight of the task's loss on the features that can be indexed; 0 is the paper's loss."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        for name in ("tokens", "depth", "heads", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}", where=name, fix="give 1 or more")
        if self.adapter not in ("paper", "released"):
            fix = did_you_mean(self.adapter, ("paper", "released"))
            raise UserError(f"adapter is {self.adapter!r}", where="adapter", fix=fix)
        if self.divergence not in DIVERGENCES:
            fix = did_you_mean(self.divergence, DIVERGENCES)
            raise UserError(f"divergence is {self.divergence!r}", where="divergence", fix=fix)
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"dropout is {self.dropout}", where="dropout", fix="give a value in [0, 1)"
            )
        for name in ("temperature", "consistency_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(
                    f"{name} is {getattr(self, name)}", where=name, fix="give a number above 0"
                )
        for name in ("image_weight", "text_weight", "plain_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(
                    f"{name} is {getattr(self, name)}", where=name, fix="give 0 or more"
                )


class ApolloAdapters(nn.Module):
    """The adapters of both modalities and their part of the loss; see `adapters.companion`."""

    def __init__(self, width: int, heads: int, config: ApolloConfig) -> None:
        super().__init__()
        form = SeparateAdapters if config.adapter == "paper" else SharedAdapters
        self.streams = form(width, heads, config.hidden * width, config.dropout)
        self.config = config
        self.plain_weight = config.plain_weight

    def score(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines (N, M) after the adapters, of features (N, E) and the list of texts (M, E)."""
        adapted, shown = self.streams(_scaled(images), _scaled(texts))
        return torch.einsum(
            "ne,nme->nm",
            F.normalize(adapted, dim=-1),
            F.normalize(shown, dim=-1).expand(len(images), -1, -1),
        )

    def terms(
        self, features: Mapping[str, Tensor], views: Mapping[str, Tensor], same: Tensor
    ) -> dict[str, Tensor]:
        """L_co2 of both modalities, weighted, by name."""
        adapted = self.streams.pairs(_scaled(features["image"]), _scaled(features["text"]))
        weights = {"image": self.config.image_weight, "text": self.config.text_weight}
        return {
            f"{name}_agreement": weight * self.agreement(x, views[name], same)
            for (name, weight), x in zip(weights.items(), adapted, strict=True)
            if weight > 0
        }

    def agreement(self, x: Tensor, other: Tensor, same: Tensor | None = None) -> Tensor:
        """L_co2 of trained features x (N, E) and the frozen ones of their second views."""
        profile = consistency(
            x, other, self.config.consistency_temperature, self.config.divergence, same
        )
        return contrast(x, other, self.config.temperature, same) + 2 * profile


def _scaled(features: Tensor) -> Tensor:
    """Features (N, E) in float32 with a mean square of 1, the scale of a LayerNorm's output."""
    return F.normalize(features.float(), dim=-1) * math.sqrt(features.shape[-1])


@register("apollo", ApolloConfig)
def plan(backbone: Backbone, config: ApolloConfig) -> Plan:
    """MaPLe's prompts and the adapters on the features.

    Raises:
        UserError: as for MaPLe, or heads that do not divide the shared space.
    """
    width = backbone.embedding_dim
    divisors = [n for n in range(1, 17) if width % n == 0]
    heads = max(n for n in divisors if n <= PAPER_HEADS) if config.heads is None else config.heads
    if width % heads:
        raise UserError(
            f"{heads} heads do not divide the {width} channels of {backbone.source}",
            where="heads",
            fix=f"give a divisor, such as {', '.join(map(str, divisors))}",
        )
    prompts = coupled_prompts(backbone, config.tokens, config.depth, config.words)
    return [*prompts, Companion(ApolloAdapters(width, heads, config))]
