"""The strength that counts now: an adapter's own, or what this thread has set for a moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter

_HERE = threading.local()


def dialled(adapter: AttachedAdapter) -> float:
    """The strength at which `adapter` works in this thread at this moment, in [0, 1]."""
    value = getattr(_HERE, "strength", None)
    return adapter.strength if value is None else value


@contextmanager
def at_strength(value: float) -> Iterator[None]:
    """Inside the block the active adapter works at `value` in this thread; others see no change."""
    before = getattr(_HERE, "strength", None)
    _HERE.strength = value
    try:
        yield
    finally:
        _HERE.strength = before
