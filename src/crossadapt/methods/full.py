"""Full fine-tuning, kept apart from the backbone: trained copies of (nearly) all parameters.

The reference every adapter is compared with. Scope ``clip4clip`` is the rule of CLIP4Clip (Luo
et al., arXiv 2104.08860): all transformer blocks, the layers after them and the logit scale are
trained; patch, class, position and token embeddings and the layer norm before the first block
stay frozen. On CLIP ViT-B/32 that is 123,540,993 of 151,277,313 parameters (81.7 %). Scope
``all`` trains everything, which is what training from scratch needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crossadapt.adapters.parts import parameter_parts
from crossadapt.adapters.plan import Override, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class FullConfig:
    """Options of full fine-tuning."""

    scope: Literal["clip4clip", "all"] = "clip4clip"
    """What is trained: 'clip4clip' leaves the embeddings frozen, 'all' trains everything."""

    def __post_init__(self) -> None:
        """Refuse an unknown scope."""
        if self.scope not in ("clip4clip", "all"):
            raise UserError(f"scope is {self.scope!r}", where="scope", fix="give clip4clip or all")


@register("full", FullConfig)
def plan(backbone: Backbone, config: FullConfig) -> Plan:
    """A trained copy of every parameter in scope, in the model's own order."""
    parts = parameter_parts(backbone)
    frozen = set(parts.stem) if config.scope == "clip4clip" else set()
    return [Override(n) for n, _ in backbone.model.named_parameters() if n not in frozen]
