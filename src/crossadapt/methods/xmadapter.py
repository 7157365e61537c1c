"""XMAdapter: a cache for pictures and one for texts, mixed; hard samples weigh more.

Yang et al., "Cross-Modal Adapter: Parameter-Efficient Transfer Learning Approach for
Vision-Language Models", ICME 2024, arXiv 2404.12588 (not the Cross-Modal Adapter of
`cross_modal_adapter`). Published are the two caches, an adaptive ratio between them and weights by
their disagreement; the formulas are not to be seen, those marked * are ours, "inspired by":

    T     = L MetaNet(F_txt)                      (N K, D): a text key per cached picture
    g     = Img2TxtNet(f)                         (B, D)
    A_img = exp(-beta (1 - f F'))                 (B, N K)
    A_txt = exp(-beta (1 - g T'))                 (B, N K), g and T normalised *
    A     = gamma A_img + (1 - gamma) A_txt       gamma = sigmoid(g0), g0 = 0 at the start *
    logits = 100 f W + alpha A L

    loss  = mean_b w_b CE_b,  w_b = (1 - lambda) + lambda d_b / mean(d),
            d_b = mean_j |A_img - A_txt|, without gradient *

F_txt (N, C) are text features learned by CoOp. T has only N different rows, so ``A_txt L`` is K
times a form over classes, which is what is computed. Both nets are single linear layers that start
with the same semi-orthogonal weight and bias 0, so that step 0 compares a projection of picture and
text *. Trained: keys, nets and g0, N K C + 2 (C D + D) + 1 values; 16,908,801 for 1,000 classes of
16 pictures with C = 1024, D = 256. The published count is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossadapt.adapters.plan import Companion, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError, did_you_mean
from crossadapt.layers.class_cache import ClassCache
from crossadapt.layers.feature_cache import affinity, class_sums, disagreement_weights
from crossadapt.methods.tip_adapter import TipAdapterConfig, start

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

GAMMAS = ("learned", "fixed", "per-query")


@dataclass(frozen=True)
class XMAdapterConfig(TipAdapterConfig):
    """Options of XMAdapter; the first four are those of Tip-Adapter."""

    classes: tuple[str, ...] = ()
    """Names of the classes; the task few-shot takes them from the data."""
    shots: int = 0
    """Pictures per class in the cache; the task few-shot fills it in."""
    alpha: float | None = None
    """Weight of the cache before the search; unset: the data set's published one, or 1.17."""
    beta: float | None = None
    """Sharpness of the cache before the search; unset: 1."""
    width: int | None = None
    """Size D of the space of the text cache; unset: a quarter of the features' size."""
    gamma: Literal["learned", "fixed", "per-query"] = "learned"
    """Share of the picture cache: one trained number, fixed at one half, or for each query by how
    sure either cache is."""
    hard_weight: float = 0.5
    """Lambda: how much of a sample's weight depends on the disagreement of the caches; 0 is plain
    cross-entropy."""
    freeze_keys: bool = False
    """Leave the picture keys as they are and train the text cache only."""
    coop: str = ""
    """Folder of a CoOp adapter trained on the same classes, whose text features make the text
    cache, as published; empty takes those of the templates."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise UserError(f"width is {self.width}", where="width", fix="give 1 or more")
        if self.gamma not in GAMMAS:
            fix = did_you_mean(self.gamma, GAMMAS)
            raise UserError(f"gamma is {self.gamma!r}", where="gamma", fix=fix)
        if not 0 <= self.hard_weight <= 1:
            raise UserError(
                f"hard_weight is {self.hard_weight}", where="hard_weight", fix="give [0, 1]"
            )


class MixedCache(ClassCache):
    """The picture cache of Tip-Adapter-F and a text cache, mixed.

    Args:
        config: sizes and choices.
        width: C, of the features.
        inner: D, of the text cache.
    """

    text_keys: Tensor

    def __init__(self, config: XMAdapterConfig, width: int, inner: int) -> None:
        super().__init__(
            config.classes, config.shots, width, *start(config), not config.freeze_keys
        )
        self.shots, self.mixing, self.hard_weight = config.shots, config.gamma, config.hard_weight
        self.register_buffer("text_keys", torch.zeros(len(config.classes), width))
        self.meta, self.img2txt = nn.Linear(width, inner), nn.Linear(width, inner)
        nn.init.orthogonal_(self.meta.weight)
        with torch.no_grad():
            self.img2txt.weight.copy_(self.meta.weight)
            for net in (self.meta, self.img2txt):
                net.bias.zero_()
        self.gate = nn.Parameter(torch.zeros(())) if config.gamma == "learned" else None

    def build(self, support: Any) -> None:
        """Take in the examples; without text keys of their own, the class texts serve for them."""
        super().build(support)
        given = support.text if support.text_keys is None else support.text_keys
        with torch.no_grad():
            self.text_keys.copy_(given)

    def affinities(self, images: Tensor, beta: float | None = None) -> tuple[Tensor, Tensor]:
        """A_img (B, N K) and the distinct columns of A_txt (B, N), for features (B, C)."""
        beta = self.beta if beta is None else beta
        f = F.normalize(images.float(), dim=-1)
        queries = F.normalize(self.img2txt(f), dim=-1)
        keys = F.normalize(self.meta(self.text_keys), dim=-1)
        return affinity(f @ self.keys.T, beta), affinity(queries @ keys.T, beta)

    def mixed(self, by_image: Tensor, by_text: Tensor) -> Tensor:
        """``A L`` (B, N) from what `affinities` gives."""
        image_part = class_sums(by_image, self.labels, len(self.classes))
        text_part = self.shots * by_text
        if self.mixing == "fixed":
            share: Tensor | float = 0.5
        elif self.gate is not None:
            share = torch.sigmoid(self.gate)
        else:
            surest = image_part.amax(dim=1, keepdim=True), text_part.amax(dim=1, keepdim=True)
            share = surest[0] / (surest[0] + surest[1])
        return share * image_part + (1 - share) * text_part

    def cache_part(self, images: Tensor, beta: float | None = None) -> Tensor:
        """What both caches say (B, N), before alpha."""
        return self.mixed(*self.affinities(images, beta))

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Mapping[str, float]]:
        """Cross-entropy, weighted by how much the caches disagree about a sample."""
        by_image, by_text = self.affinities(images)
        logits = self.zero_shot(images) + self.alpha * self.mixed(by_image, by_text)
        each = F.cross_entropy(logits, labels, reduction="none")
        spread = by_text[:, self.labels]
        weights = disagreement_weights(by_image, spread, self.hard_weight)
        parts = {} if self.gate is None else {"gamma": float(torch.sigmoid(self.gate.detach()))}
        return (weights * each).mean(), parts


@register("xmadapter", XMAdapterConfig, few_shot=True)
def plan(backbone: Backbone, config: XMAdapterConfig) -> Plan:
    """Both caches beside the towers."""
    width = backbone.embedding_dim
    return [Companion(MixedCache(config, width, config.width or max(1, width // 4)))]
