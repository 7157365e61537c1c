"""What a parallel insertion reads when that is not the input of its own site: a tap elsewhere."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor, nn

from crossadapt.backbones.base import Site

_HERE = threading.local()


class Tap:
    """A forward hook that keeps what passes at ``site.source`` until the site itself runs.

    Kept per thread, and taken away on use. An object rather than a closure, so that a deep copy of
    the backbone copies it too.
    """

    by_token = True  # it only keeps; what is done with it is said by the module

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the first input or output."""
        found = inputs if self.site.side == "input" else output
        self._kept()[id(self)] = found[0] if isinstance(found, tuple) else found

    def take(self) -> Tensor:
        """What has passed; the source must have run before the site, in the same layer."""
        return self._kept().pop(id(self))

    def _kept(self) -> dict[int, Tensor]:
        if not hasattr(_HERE, "kept"):
            _HERE.kept = {}
        return _HERE.kept
