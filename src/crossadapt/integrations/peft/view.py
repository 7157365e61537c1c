"""An ordinary Hugging Face model seen through the part of `Backbone` that a plan needs."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from crossadapt.backbones.base import Backbone
from crossadapt.backbones.clip import CLIPBackbone
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.siglip import SiglipBackbone
from crossadapt.errors import UserError

FAMILIES = (CLIPBackbone.family, SiglipBackbone.family)


class ModelView:
    """What `plan(backbone, config)` reads of a backbone: `model`, shape.

    Unlike a real backbone it leaves the model's mode and gradients alone: those are PEFT's here.

    Args:
        model: a `CLIPModel` or `SiglipModel`, adapted already or not.

    Raises:
        UserError: the model is of no family that crossadapt knows.
    """

    # The backbone's own answers: they come from the model's configuration alone, so a model that
    # another adapter has wrapped gives the same ones.
    tower_config = HFBackbone.tower_config
    sites = HFBackbone.sites
    width = HFBackbone.width
    depth = HFBackbone.depth
    tokens = HFBackbone.tokens

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.family = family_of(model)
        family = next(c for c in (CLIPBackbone, SiglipBackbone) if c.family == self.family)
        self.class_token, self.causal_text = family.class_token, family.causal_text
        self.masked_text, self.towers = family.masked_text, family.towers
        self.prompt_towers = family.prompt_towers
        self.source = str(getattr(model, "name_or_path", ""))
        # A plan is only looked at here; words that prompts start from are not read.
        self.tokenize = None

    @property
    def embedding_dim(self) -> int:
        """Size of the shared feature space."""
        config = self.model.config
        if self.family == SiglipBackbone.family:
            return config.vision_config.hidden_size
        return config.projection_dim


def as_backbone(model: nn.Module) -> Backbone:
    """`model` as far as a plan looks at it; encoding and tokenising are not part of the view."""
    return cast("Backbone", ModelView(model))


def family_of(model: nn.Module) -> str:
    """The family name of a two-tower Hugging Face model; a UserError for any other model."""
    family = getattr(getattr(model, "config", None), "model_type", None)
    towers = all(hasattr(model, f"{tower}_model") for tower in ("vision", "text"))
    if family not in FAMILIES or not towers:
        raise UserError(
            "this model has no vision and text tower that crossadapt knows",
            where=f"{type(model).__name__}, model_type {family!r}",
            fix="pass a transformers CLIPModel or SiglipModel",
        )
    return family
