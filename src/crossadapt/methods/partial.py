"""Partial fine-tuning: trained copies of the last k transformer layers of both towers.

With ``heads`` off and one layer this is the "Partial" baseline of Cross-Modal Adapter v2: on CLIP
ViT-B/32 7,087,872 + 3,152,384 = 10,240,256 parameters (published 10.2M). With ``heads`` on it is
CLIP4Clip's rule of freezing the first 12 - k layers (layers after the blocks and the logit scale
are trained too): k = 6, 3, 1, 0 give 62.10M, 31.38M, 10.90M and 0.66M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossadapt.adapters.parts import parameter_parts
from crossadapt.adapters.plan import Override, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class PartialConfig:
    """Options of partial fine-tuning."""

    layers: int = 1
    """How many of the last layers of each tower are trained."""
    heads: bool = False
    """Also train what follows the blocks (final norms, projections or heads, logit scale)."""

    def __post_init__(self) -> None:
        """Refuse a negative count and a choice that trains nothing."""
        if self.layers < 0:
            raise UserError(f"layers is {self.layers}", where="layers", fix="give 0 or more")
        if self.layers == 0 and not self.heads:
            raise UserError(
                "layers is 0 and heads is off, so nothing would be trained",
                where="layers",
                fix="train one layer or more, or turn heads on",
            )


@register("partial", PartialConfig)
def plan(backbone: Backbone, config: PartialConfig) -> Plan:
    """Trained copies of the last layers, and of the heads when asked for.

    Raises:
        UserError: a tower has fewer layers.
    """
    parts = parameter_parts(backbone)
    wanted = set(parts.heads) if config.heads else set()
    for tower in ("vision", "text"):
        depth = backbone.depth(tower)
        if config.layers > depth:
            raise UserError(
                f"layers is {config.layers} but the {tower} tower has {depth}",
                where="layers",
                fix=f"give at most {depth}, or use the method full",
            )
        for layer in range(depth - config.layers, depth):
            wanted.update(parts.layers[tower, layer])
    return [Override(n) for n, _ in backbone.model.named_parameters() if n in wanted]
