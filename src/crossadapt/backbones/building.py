"""Models built from a configuration rather than read from disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from crossadapt.backbones.blip import BlipBackbone
from crossadapt.backbones.clip import CLIPBackbone
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.siglip import SiglipBackbone
from crossadapt.errors import UserError

FAMILIES: dict[str, type[HFBackbone]] = {
    "clip": CLIPBackbone,
    "siglip": SiglipBackbone,
    "blip": BlipBackbone,
}
_PREFIXES = {"clip": "CLIP", "siglip": "Siglip", "blip": "Blip"}


def make_config(family: str, vision: dict, text: dict, **fields: Any) -> Any:
    """A Hugging Face `CLIPConfig`, `SiglipConfig` or `BlipConfig` from plain dictionaries.

    Raises:
        UserError: values that transformers' own validation refuses.
    """
    try:
        return config_class(family)(vision_config=vision, text_config=text, **fields)
    except Exception as error:  # transformers and the hub library each have their own types
        raise UserError(
            "The model configuration is not valid.",
            where=" ".join(str(error).split()),
            fix="correct the value",
        ) from error


def config_class(family: str) -> Any:
    """The Hugging Face configuration class of a supported ``model_type``."""
    import transformers

    # By name, so that only this family's modules are imported.
    return getattr(transformers, f"{_PREFIXES[family]}Config")


def make_model(config: Any, *, seed: int, weights: bool) -> nn.Module:
    """A model with random float32 weights from `seed`, or none at all (``meta`` device).

    The caller's random state is untouched. Without weights nothing is allocated, which makes
    counting parameters of any architecture immediate.
    """
    kind = model_class(config.model_type)
    if not weights:
        with torch.device("meta"):
            return kind(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


def model_class(model_type: str) -> Any:
    """The Hugging Face class of a supported ``model_type``."""
    import transformers

    suffix = "ForImageTextRetrieval" if model_type == "blip" else "Model"
    return getattr(transformers, _PREFIXES[model_type] + suffix)
