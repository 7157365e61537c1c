"""Tip-Adapter-F: Tip-Adapter whose cache keys are fine-tuned.

Zhang et al., arXiv 2111.03930. The logits are Tip-Adapter's; the keys F (N K, C), filled with the
features of the pictures, become the weight of a linear layer without bias and are trained with
cross-entropy, at the start values of `alpha` and `beta`, which are searched afterwards. Labels and
both encoders stay frozen. The keys are not normalised again, so an affinity may leave its range.

Trained: N K C values, 16,384,000 for 1,000 classes of 16 pictures on CLIP RN50 (C = 1024).
Published recipe: AdamW, learning rate 1e-3, eps 1e-4, cosine to 0, 20 epochs, batches of 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossadapt.adapters.plan import Companion, Plan
from crossadapt.adapters.registry import register
from crossadapt.layers.class_cache import ClassCache
from crossadapt.methods.tip_adapter import TipAdapterConfig, start

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class TipAdapterFConfig(TipAdapterConfig):
    """Options of Tip-Adapter-F, those of Tip-Adapter."""

    classes: tuple[str, ...] = ()
    """Names of the classes; the task few-shot takes them from the data."""
    shots: int = 0
    """Pictures per class in the cache; the task few-shot fills it in."""
    alpha: float | None = None
    """Weight of the cache before the search; unset: the data set's published one, or 1.17."""
    beta: float | None = None
    """Sharpness of the cache before the search; unset: 1."""


@register("tip-adapter-f", TipAdapterFConfig, few_shot=True)
def plan(backbone: Backbone, config: TipAdapterFConfig) -> Plan:
    """The cache beside the towers, its keys trained."""
    size = (config.classes, config.shots, backbone.embedding_dim)
    return [Companion(ClassCache(*size, *start(config), trained_keys=True))]
