"""Numeric signals beside the items: read, checked, and what is unusable noted in the ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.data.ledger import Ledger
    from crossadapt.data.manifest import Manifest

SIGNALS = "signals"
"""The column that holds signals, or names of files with them."""
SIDECAR = ".signals.npy"
"""Ending of a file of signals that lies beside its item: ``walk.mp4``, ``walk.signals.npy``."""


@dataclass(frozen=True)
class Signals:
    """A series for each item: `series` float32 (T, channels), or None where there is none.

    A value that was not measured is NaN.
    """

    series: list[np.ndarray | None]
    channels: int

    def __len__(self) -> int:
        return len(self.series)


def has_signals(manifest: Manifest) -> bool:
    """Whether any item of a manifest comes with signals, readable or not."""
    if SIGNALS in manifest.attributes and any(_cells(manifest)):
        return True
    return any(_beside(item).is_file() for item in manifest.items)


def read_signals(manifest: Manifest, ledger: Ledger, channels: int | None = None) -> Signals:
    """The signals of a manifest's items, in the order of ``manifest.items``.

    The column `signals` holds, for each item, a list of numbers (one channel), a list of lists
    (one per moment), the same as JSON text, or the name of an ``.npy`` file (T,) or (T, channels),
    relative to the item or to the data. Without an entry, a file ``<item>.signals.npy`` beside the
    item is taken. An item without either has no signals, which is no mistake; signals that cannot
    be used go to the ledger and the item goes on without them.

    Args:
        manifest: the items.
        ledger: receives what cannot be used.
        channels: how many every series must have; the most frequent number when None.

    Raises:
        UserError: no series at all can be used, and `channels` was not given.
    """
    cells = _cells(manifest)
    base = Path(manifest.source) if manifest.source else Path()
    base = base if base.is_dir() else base.parent
    series: list[np.ndarray | None] = []
    for item, cell in zip(manifest.items, cells, strict=True):
        try:
            series.append(_series(item, cell, base))
        except (OSError, ValueError, TypeError) as error:
            series.append(None)
            ledger.add(item, f"unreadable signals: {error}; it goes on without them", "signals")
    sizes = Counter(found.shape[1] for found in series if found is not None)
    if channels is None:
        if not sizes:
            raise UserError(
                "none of the signals can be used",
                where=manifest.source,
                fix=ledger.render() or f"fill the column {SIGNALS}, or leave signals out",
            )
        channels = sizes.most_common(1)[0][0]
    for place, found in enumerate(series):
        if found is not None and found.shape[1] != channels:
            said = f"unreadable signals: {found.shape[1]} channels, the others have {channels}"
            ledger.add(manifest.items[place], f"{said}; it goes on without them", "signals")
            series[place] = None
    return Signals(series, channels)


def _cells(manifest: Manifest) -> list[Any]:
    """The first entry of the column for each item; None without one."""
    found: list[Any] = [None] * len(manifest.items)
    if SIGNALS in manifest.attributes:
        values = manifest.table.column(SIGNALS).to_pylist()
        for item, value in zip(manifest.item_index, values, strict=True):
            if found[item] in (None, ""):
                found[item] = value
    return found


def _beside(item: str) -> Path:
    return Path(item).with_suffix(SIDECAR)


def _series(item: str, cell: Any, base: Path) -> np.ndarray | None:
    if isinstance(cell, str) and cell.strip().startswith("["):
        cell = json.loads(cell)
    if isinstance(cell, str) and cell.strip():
        name = cell.strip()
        places = [Path(item).parent / name, base / name]
        path = next((p for p in places if p.is_file()), None)
        if path is None:
            raise OSError(f"no file {name}")
        return _checked(np.load(path, allow_pickle=False))
    if cell not in (None, ""):
        return _checked(_numbers(cell))
    beside = _beside(item)
    return _checked(np.load(beside, allow_pickle=False)) if beside.is_file() else None


def _numbers(cell: Sequence[Any]) -> np.ndarray:
    """A list of numbers, or of lists of them; None is a value that was not measured."""
    rows = [row if isinstance(row, list | tuple) else [row] for row in cell]
    if any(isinstance(v, str | bool | list | dict) for row in rows for v in row):
        raise ValueError("not all entries are numbers")
    return np.array([[np.nan if v is None else v for v in row] for row in rows], np.float64)


def _checked(found: np.ndarray) -> np.ndarray:
    if found.dtype.kind not in "fiu":
        raise ValueError(f"values of type {found.dtype}")
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"shape {found.shape}, not (moments,) or (moments, channels)")
    found = found.astype(np.float32)
    if np.isinf(found).any():
        raise ValueError("infinite values")
    if np.isnan(found).all():
        raise ValueError("no value was measured")
    return found
