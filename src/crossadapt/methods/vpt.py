"""VPT: learned tokens beside the patches, in front of the first layer or of every layer.

Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119. With class token c, patches E and
prompts P in R^{p x D_v}:

    shallow   [c_1, Z_1, E_1] = L_1([c_0, P_0, E_0])     then   L_{i+1}([c_i, Z_i, E_i])
    deep      [c_{i+1}, _, E_{i+1}] = L_{i+1}([c_i, P_i, E_i])   for every layer

Trained: p D_v (shallow) or L p D_v (deep) values; deep with p = 5 on CLIP ViT-B/32 46,080, 0.03 %
of the adapted model. The text tower is not touched. The start is not the frozen model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crossadapt.adapters.plan import Plan, Prompts
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError
from crossadapt.layers.prompts import PromptBank

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class VPTConfig:
    """Options of VPT."""

    tokens: int = 5
    """Prompt tokens p per layer."""
    deep: bool = True
    """Own prompts for every layer (VPT-deep); off, for the first one only (VPT-shallow)."""

    def __post_init__(self) -> None:
        """Refuse prompts without tokens."""
        if self.tokens < 1:
            raise UserError(f"tokens is {self.tokens}", where="tokens", fix="give 1 or more")


@register("vpt", VPTConfig)
def plan(backbone: Backbone, config: VPTConfig) -> Plan:
    """Prompts in the vision tower, drawn as the authors do from the size of a patch."""
    width = backbone.width("vision")
    depth = backbone.depth("vision") if config.deep else 1
    bound = math.sqrt(6 / (patch_values(backbone) + width))
    bank = PromptBank(depth, config.tokens, width, uniform=bound)
    return [Prompts("vision", config.tokens, depth, bank)]


def patch_values(backbone: Backbone) -> int:
    """Numbers in one patch of a picture, 3 x side x side: what one patch filter has."""
    site = next(s for s in backbone.sites() if s.name == "vision.embedding")
    embedding: Any = backbone.model.get_submodule(site.path)
    return embedding.patch_embedding.weight[0].numel()
