"""Attention adapter: a residual bottleneck behind every attention, none behind the MLPs.

The baseline "Adapter-ATTN" of Jiang et al., "Cross-Modal Adapter for Vision-Language Retrieval",
Pattern Recognition 159 (2025); the block is that of Houlsby et al., arXiv 1902.00751. In every
layer of both towers, with y the attention's output:

    h = x + y + QuickGELU(y Wd^T + bd) Wu^T + bu

Trained: L (2 r (D_v + D_t) + 2 r + D_v + D_t) values; with r = 16 on CLIP ViT-B/32 507,264, 0.33 %
of the adapted model. The start is near the frozen model, not equal to it (std 0.01).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossadapt.adapters.plan import Insertion, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError
from crossadapt.layers.bottleneck import Bottleneck

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class AttentionAdapterConfig:
    """Options of the attention adapter."""

    r: int = 16
    """Bottleneck width. 16 and 64 give the 0.5M and 2.0M of Cross-Modal Adapter's tables."""
    dropout: float = 0.0
    """Dropout probability between the activation and the up-projection."""
    init_std: float = 0.01
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        if self.r < 1:
            raise UserError(f"r is {self.r}", where="r", fix="give a bottleneck width of 1 or more")
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"dropout is {self.dropout}", where="dropout", fix="give a value in [0, 1)"
            )
        if not (self.init_std >= 0 and math.isfinite(self.init_std)):
            raise UserError(
                f"init_std is {self.init_std}", where="init_std", fix="give 0.01 or thereabouts"
            )


@register("attention-adapter", AttentionAdapterConfig)
def plan(backbone: Backbone, config: AttentionAdapterConfig) -> Plan:
    """A bottleneck behind every attention of both towers."""
    return [
        Insertion(
            site,
            Bottleneck(site.width, config.r, dropout=config.dropout, init_std=config.init_std),
        )
        for site in backbone.sites()
        if site.kind == "attention" and site.tower in ("vision", "text")
    ]
