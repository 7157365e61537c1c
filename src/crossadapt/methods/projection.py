"""Projection tuning: trained copies of what follows the transformer blocks, nothing else.

The "Projection" baseline of Cross-Modal Adapter v2 and the last row of CLIP4Clip's freezing table
(arXiv 2104.08860): on CLIP the final layer norms of both towers, both projections and the logit
scale, 657,921 parameters on ViT-B/32 (0.43 %). SigLIP has no projections; there the final layer
norms, the attention-pooling head of the vision tower, the linear head of the text tower, the
logit scale and the logit bias are trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossadapt.adapters.parts import parameter_parts
from crossadapt.adapters.plan import Override, Plan
from crossadapt.adapters.registry import register

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class ProjectionConfig:
    """Projection tuning has no options."""


@register("projection", ProjectionConfig)
def plan(backbone: Backbone, config: ProjectionConfig) -> Plan:
    """Trained copies of the heads."""
    heads = set(parameter_parts(backbone).heads)
    return [Override(n) for n, _ in backbone.model.named_parameters() if n in heads]
