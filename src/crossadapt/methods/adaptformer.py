"""AdaptFormer: a small branch beside every MLP.

Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS
2022, arXiv 2205.13535. In every layer, with h the stream behind attention and LN the layer's norm:

    out = h + MLP(LN(h)) + s ReLU(LN(h) Wd^T + bd) Wu^T + s bu          s = 0.1, fixed

The paper adapts a vision tower; here, as in the tables of Cross-Modal Adapter, both towers are.

Trained: L (2 r (D_v + D_t) + 2 r + D_v + D_t) values; with r = 16 on CLIP ViT-B/32 507,264, 0.33 %
of the adapted model. The start is the frozen model: Wu, bu and bd are zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossadapt.adapters.plan import Insertion, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError
from crossadapt.layers.bottleneck import ParallelBottleneck

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class AdaptFormerConfig:
    """Options of AdaptFormer."""

    r: int = 16
    """Width of the branch. 16 and 64 give the 0.5M and 2.0M of Cross-Modal Adapter's tables."""
    scale: float = 0.1
    """Fixed factor s on the branch."""
    dropout: float = 0.1
    """Dropout probability behind the ReLU."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        if self.r < 1:
            raise UserError(f"r is {self.r}", where="r", fix="give a width of 1 or more")
        if not math.isfinite(self.scale) or self.scale == 0:
            raise UserError(f"scale is {self.scale}", where="scale", fix="give 0.1 or thereabouts")
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"dropout is {self.dropout}", where="dropout", fix="give a value in [0, 1)"
            )


@register("adaptformer", AdaptFormerConfig)
def plan(backbone: Backbone, config: AdaptFormerConfig) -> Plan:
    """A branch beside every MLP of both towers."""
    return [
        Insertion(
            site,
            ParallelBottleneck(site.width, config.r, scale=config.scale, dropout=config.dropout),
            parallel=True,
        )
        for site in backbone.sites()
        if site.kind == "mlp" and site.tower in ("vision", "text")
    ]
