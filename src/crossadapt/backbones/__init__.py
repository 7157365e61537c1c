"""What is frozen: CLIP and SigLIP behind one contract. See `base` for the words.

Names resolve on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crossadapt.backbones.base import Backbone, Preprocess, Site, TokenBatch, Tower

if TYPE_CHECKING:
    from crossadapt.backbones.architectures import config_names
    from crossadapt.backbones.attention import choose_attention
    from crossadapt.backbones.hf import HFBackbone
    from crossadapt.backbones.loading import load
    from crossadapt.backbones.miniature import tiny
    from crossadapt.backbones.saving import save_backbone

_LAZY = {
    "HFBackbone": "hf",
    "choose_attention": "attention",
    "config_names": "architectures",
    "load": "loading",
    "save_backbone": "saving",
    "tiny": "miniature",
}

__all__ = [
    "Backbone",
    "HFBackbone",
    "Preprocess",
    "Site",
    "TokenBatch",
    "Tower",
    "choose_attention",
    "config_names",
    "load",
    "save_backbone",
    "tiny",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
