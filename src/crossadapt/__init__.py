"""crossadapt: adapt a frozen vision-language model, measure the gain, put it to use.

Names resolve on first use, so that ``import crossadapt`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossadapt.adapters.attach import activate, attach, detach, frozen, set_strength
    from crossadapt.adapters.folder import load_adapter, save_adapter
    from crossadapt.adapters.merge import merge
    from crossadapt.backbones.loading import load
    from crossadapt.data import read_manifest
    from crossadapt.methods.cross_modal_adapter import CrossModalAdapterConfig

__version__ = "0.1.0"

_LAZY = {
    "CrossModalAdapterConfig": "methods.cross_modal_adapter",
    "activate": "adapters.attach",
    "attach": "adapters.attach",
    "detach": "adapters.attach",
    "frozen": "adapters.attach",
    "load": "backbones.loading",
    "load_adapter": "adapters.folder",
    "merge": "adapters.merge",
    "read_manifest": "data",
    "save_adapter": "adapters.folder",
    "set_strength": "adapters.attach",
}

__all__ = [
    "CrossModalAdapterConfig",
    "__version__",
    "activate",
    "attach",
    "detach",
    "frozen",
    "load",
    "load_adapter",
    "merge",
    "read_manifest",
    "save_adapter",
    "set_strength",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
