"""The data of a run: read, decoded, checked, and cut into the splits it trains and measures on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from crossadapt.data import (
    DuplicateReport,
    Ledger,
    Manifest,
    PixelStore,
    find_duplicates,
    open_pixels,
)
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


class View:
    """Some pictures of a store, renumbered from 0: the pixels of one split."""

    def __init__(self, store: PixelStore, places: np.ndarray) -> None:
        self.store, self.places = store, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:
        """Picture `index`: uint8 (3, H, W)."""
        return self.store[int(self.places[index])]


@dataclass(frozen=True)
class Split:
    """Rows of one split and the pixels of its items, ``pixels[i]`` belonging to ``items[i]``."""

    name: str
    manifest: Manifest
    pixels: View


@dataclass(frozen=True)
class Splits:
    """`train`, and what there is of `val` (picks the best checkpoint) and `test` (is reported)."""

    train: Split
    val: Split | None
    test: Split | None
    duplicates: DuplicateReport
    """Look-alike pictures and equal texts of different groups, and which of them cross splits."""


def open_splits(
    manifest: Manifest,
    backbone: Backbone,
    *,
    ledger: Ledger,
    cache: Path | Literal[False] | None = None,
    workers: int | None = None,
) -> Splits:
    """Decode every picture once and hand out the splits without those that cannot be read.

    Raises:
        UserError: no training split, videos among the items, or no readable picture.
    """
    videos = manifest.table.column("kind").to_pylist().count("video")
    if videos:
        raise UserError(
            f"{videos} rows are videos, which this task does not read",
            where=manifest.source,
            fix="leave them out, or extract one picture of each",
        )
    names = [name for name in ("train", "val", "test") if name in manifest.split_sizes]
    if "train" not in names:
        raise UserError(
            "the data has no training split",
            where=f"splits: {', '.join(manifest.split_sizes)}",
            fix="name one of the splits 'train', or remove the split column",
        )
    parts = {name: manifest.select(name) for name in names}
    items = [item for part in parts.values() for item in part.items]
    store = open_pixels(
        items,
        backbone.preprocess.pixels,
        key=preprocess_key(backbone),
        cache=cache,
        workers=workers,
        ledger=ledger,
    )
    splits = {name: _split(name, part, store) for name, part in parts.items()}
    train = splits["train"]
    if train is None:
        raise UserError(
            "no picture of the training split can be read",
            where=manifest.source,
            fix=ledger.render() or "check the paths",
        )
    column = np.asarray(manifest.table.column("split").to_pylist(), dtype=object)
    used = manifest.take(np.flatnonzero(np.isin(column, names)))
    duplicates = find_duplicates(used, store=store)
    return Splits(train, splits.get("val"), splits.get("test"), duplicates)


def preprocess_key(backbone: Backbone) -> str:
    """Names what a backbone does to a picture, for the pixel cache."""
    preprocess = backbone.preprocess
    described = f"{type(preprocess).__name__} {preprocess!r} {preprocess.size}"
    return hashlib.sha256(described.encode()).hexdigest()


def _split(name: str, manifest: Manifest, store: PixelStore) -> Split | None:
    """The readable part of a split; None when nothing is left."""
    gone = [item for item in manifest.items if item in store.unreadable]
    if len(gone) == len(manifest.items):
        return None
    readable = manifest.without(gone)
    return Split(name, readable, View(store, store.positions(readable.items)))
