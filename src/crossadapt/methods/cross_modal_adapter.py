"""Cross-Modal Adapter: bottlenecks in both towers that share part of their up-projection.

Jiang et al., "Cross-Modal Adapter for Text-Video Retrieval", arXiv 2211.09623 (v1 2022); v2 is
"Cross-Modal Adapter for Vision-Language Retrieval", Pattern Recognition 159 (2025).

For tower m at site k (after each attention and each MLP, before the block's residual), input x:

    z      = QuickGELU(x Wd_{m,k}^T + bd_{m,k})        r channels
    A_m(x) = x + concat[z Wu_{m,k}^T + bu_{m,k},       D_m - d_s channels, this tower's own
                        z Ws_k^T + bs_k]               d_s channels, same tensors in both towers

Trained: 2L [ r (2 (D_v + D_t) - d_s + 2) + D_v + D_t - d_s ] parameters; on CLIP ViT-B/32 with
r = 8, d_s = 16 that is 519,168 or 0.34 % of the adapted model. Frozen: everything else, the
logit scale included. The start is near the frozen model, not equal to it (std 0.01).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crossadapt.adapters.plan import Insertion, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError
from crossadapt.layers.bottleneck import Bottleneck, shared_up

if TYPE_CHECKING:
    from torch import nn

    from crossadapt.backbones.base import Backbone, Tower


@dataclass(frozen=True)
class CrossModalAdapterConfig:
    """Options of the Cross-Modal Adapter."""

    r: int = 8
    """Bottleneck width. The paper uses 8 (MSR-VTT, DiDeMo) or 16."""
    d_s: int = 16
    """Output channels, the last ones, whose up-projection both towers share; 0 shares nothing
    and is the plain bottleneck adapter; at most the smaller tower's width."""
    dropout: float = 0.0
    """Dropout probability between the activation and the up-projections."""
    init_std: float = 0.01
    """Standard deviation of the initial weights; smaller converges more slowly."""
    depth_map: Literal["last", "relative"] = "last"
    """Which layers share when the towers differ in depth: 'last' pairs the last min(Lv, Lt)
    layers and leaves earlier ones unshared, 'relative' pairs by relative depth, so that several
    layers of the deeper tower share with one of the other."""
    layers: int = 0
    """Put adapters into the last so many layers of each tower only; 0 for all, as published.
    What lies below them is then computed once per run (see the guide to training speed)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        if self.r < 1:
            raise UserError(f"r is {self.r}", where="r", fix="give a bottleneck width of 1 or more")
        if self.d_s < 0:
            raise UserError(f"d_s is {self.d_s}", where="d_s", fix="give 0 or more channels")
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"dropout is {self.dropout}", where="dropout", fix="give a value in [0, 1)"
            )
        if not (self.init_std >= 0 and math.isfinite(self.init_std)):
            raise UserError(
                f"init_std is {self.init_std}", where="init_std", fix="give 0.01 or thereabouts"
            )
        if self.layers < 0:
            raise UserError(f"layers is {self.layers}", where="layers", fix="give 0 or more")
        if self.depth_map not in ("last", "relative"):
            raise UserError(
                f"depth_map is {self.depth_map!r}", where="depth_map", fix="give last or relative"
            )


def partner_index(layer: int, depth: int, other: int, depth_map: str) -> int | None:
    """Which shared matrix, of ``min(depth, other)``, a layer of a tower uses.

    Args:
        layer: the layer, from 0.
        depth: layers of this tower.
        other: layers of the other tower.
        depth_map: ``last`` or ``relative``; they agree when the depths do.

    Returns:
        The index, or None for a layer without partner (``last``: the first surplus layers).
    """
    pairs = min(depth, other)
    if depth_map == "relative":
        return layer * pairs // depth
    index = layer - (depth - pairs)
    return index if index >= 0 else None


@register("cross-modal-adapter", CrossModalAdapterConfig)
def plan(backbone: Backbone, config: CrossModalAdapterConfig) -> Plan:
    """One bottleneck per attention and MLP site of both towers, sharing by depth and kind.

    Raises:
        UserError: d_s exceeds the narrower tower, or a tower has fewer than `layers` layers.
    """
    towers: list[Tower] = ["vision", "text"]
    narrow = min(towers, key=backbone.width)
    if config.d_s > backbone.width(narrow):
        raise UserError(
            f"d_s is {config.d_s} but the {narrow} tower is {backbone.width(narrow)} wide",
            where="d_s",
            fix=f"give at most {backbone.width(narrow)}",
        )
    shallow = min(map(backbone.depth, towers))
    if config.layers > shallow:
        raise UserError(
            f"layers is {config.layers} but a tower has {shallow}",
            where="layers",
            fix=f"give at most {shallow}, or 0 for all",
        )
    shared: dict[tuple[int, str], nn.Linear] = {}
    items: Plan = []
    for site in backbone.sites():
        if site.tower not in towers or site.kind not in ("attention", "mlp"):
            continue
        if config.layers and site.layer < backbone.depth(site.tower) - config.layers:
            continue
        other = backbone.depth("text" if site.tower == "vision" else "vision")
        index = partner_index(site.layer, backbone.depth(site.tower), other, config.depth_map)
        part = None
        if config.d_s and index is not None:
            part = shared.get((index, site.kind))
            if part is None:
                part = shared_up(config.r, config.d_s, config.init_std)
                shared[index, site.kind] = part
        module = Bottleneck(
            site.width, config.r, part, dropout=config.dropout, init_std=config.init_std
        )
        items.append(Insertion(site, module))
    return items
