"""Import open_clip, also where torchvision is absent or does not load.

open_clip imports torchvision for its picture transforms and for one batch-norm helper. Nothing
here uses either: pictures are prepared by `crossadapt.backbones.preprocess`. Where torchvision
cannot be imported (it must match the build of PyTorch to the letter, and breaks often), names that
raise when used stand in for it while open_clip is being imported, and are gone afterwards. With a
working torchvision, open_clip gets that.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from crossadapt.errors import UserError

_LOCK = threading.RLock()
_IMPORTED = (
    "torchvision",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


def open_clip() -> Any:
    """The open_clip package.

    Raises:
        UserError: it, or a package it needs, is not installed.
    """
    with _LOCK:
        if "open_clip" in sys.modules:
            return sys.modules["open_clip"]
        try:
            if _torchvision_works():
                return importlib.import_module("open_clip")
            with _stand_in():
                return importlib.import_module("open_clip")
        except ImportError as error:
            _forget("open_clip")
            raise UserError(
                "open_clip is not installed.",
                where=f"open_clip models: {error}",
                fix="pip install 'crossadapt[openclip]'; or, without torchvision, "
                "pip install --no-deps open_clip_torch && pip install ftfy regex",
            ) from error


def _torchvision_works() -> bool:
    try:
        importlib.import_module("torchvision")
    except Exception:  # a build for another PyTorch raises whatever the loader or dispatcher does
        _forget("torchvision")
        return False
    return True


@contextmanager
def _stand_in() -> Iterator[None]:
    """Inside the block ``import torchvision`` gives names that raise when used."""
    # Settle what transformers thinks of torchvision before there seems to be one.
    from transformers.utils import is_torchvision_available

    is_torchvision_available()
    kept = {name: sys.modules[name] for name in ("timm",) if name in sys.modules}
    try:
        for name in _IMPORTED:
            sys.modules[name] = _Absent(name)
        # timm would take the names for torchvision too; None makes its import fail as it should.
        sys.modules.setdefault("timm", None)  # type: ignore[arg-type]
        yield
    finally:
        _forget("torchvision")
        sys.modules.pop("timm", None)
        sys.modules.update(kept)


def _forget(package: str) -> None:
    for name in list(sys.modules):
        if name == package or name.startswith(package + "."):
            del sys.modules[name]


class _Absent(ModuleType):
    """A module all of whose public names are `_AbsentName`s."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, so that its parts can be imported

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AbsentName(f"{self.__name__}.{name}", (), {})


class _AbsentName(type):
    """A class that names what is missing when it is called; its attributes are such classes."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AbsentName(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise UserError(
            f"{cls.__name__} is not available: torchvision cannot be imported.",
            where="open_clip's own picture transforms",
            fix="use the backbone's preprocess, or install the torchvision of your PyTorch build",
        )
