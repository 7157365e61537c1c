"""Which rows of a request are encoded together, and by what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from crossadapt.adapters.dial import dialled
from crossadapt.search.card import FROZEN

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter


@dataclass
class RowGroups:
    """Numbers of rows, each in one of three places."""

    together: list[int] = field(default_factory=list)
    """Rows of the frozen model and of adapters that can share a batch."""
    alone: dict[str, list[int]] = field(default_factory=dict)
    """Rows of each adapter that needs a pass of its own."""
    compiled: dict[str, list[int]] = field(default_factory=dict)
    """Rows of each view that another runtime encodes."""


def group_rows(
    order: np.ndarray, chosen: Sequence[AttachedAdapter | None], compiled: Mapping[str, float]
) -> RowGroups:
    """Sort rows into groups, each in the order given.

    Args:
        order: numbers of the rows.
        chosen: adapter of each row, None for the frozen model.
        compiled: views that another runtime encodes, and the strength it holds of them.
    """
    groups = RowGroups()
    for row in map(int, order):
        adapter = chosen[row]
        name = FROZEN if adapter is None else adapter.name
        if compiled.get(name) == strength_now(adapter):
            groups.compiled.setdefault(name, []).append(row)
        elif adapter is None or adapter.is_pure_insertion:
            groups.together.append(row)
        else:
            groups.alone.setdefault(name, []).append(row)
    return groups


def batches(rows: Sequence[int], size: int) -> Iterator[np.ndarray]:
    """The rows, `size` at a time."""
    for start in range(0, len(rows), size):
        yield np.asarray(rows[start : start + size])


def strength_now(adapter: AttachedAdapter | None) -> float:
    """What the adapter counts in this thread; the frozen model has one strength only."""
    return 1.0 if adapter is None else dialled(adapter)
