"""The data of a run: read, decoded, checked, and cut into the splits it trains and measures on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from crossadapt.backbones.packing import PackedPreprocess
from crossadapt.data import (
    DuplicateReport,
    Ledger,
    Manifest,
    PixelStore,
    find_duplicates,
    open_pixels,
)
from crossadapt.data.frame_store import FrameStore, Posters
from crossadapt.data.frames import manifest_spans, open_frames
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


class Corner(PixelStore):
    """The upper left corner of the pictures of a store: what the first of several models sees."""

    def __init__(self, store: PixelStore, size: tuple[int, int]) -> None:
        failed = {int(i): store.unreadable[store.items[i]] for i in np.flatnonzero(~store.readable)}
        super().__init__(store.items, (3, *size), failed)
        self.cached = store.cached
        self._store, self._size = store, size

    def _get(self, index: int) -> np.ndarray:
        height, width = self._size
        return np.ascontiguousarray(self._store[index][:, :height, :width])


class ClipView:
    """Some clips of a store, renumbered from 0: the frames of one split.

    Attributes:
        frames: F, the number of frame slots of every clip.
    """

    def __init__(self, store: FrameStore, places: np.ndarray) -> None:
        self.store, self.places, self.frames = store, places, store.frames

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Clip `index`: uint8 (F, 3, H, W) and its mask, bool (F,)."""
        return self.store[int(self.places[index])]


@dataclass(frozen=True)
class Split:
    """Rows of one split and the pixels of its items, ``pixels[i]`` belonging to ``items[i]``.

    `pixels` is a `ClipView` when the data hold videos, and a still picture then a clip of one
    frame.
    """

    name: str
    manifest: Manifest
    pixels: View | ClipView


@dataclass(frozen=True)
class Splits:
    """`train`, and what there is of `val` (picks the best checkpoint) and `test` (is reported)."""

    train: Split
    val: Split | None
    test: Split | None
    duplicates: DuplicateReport
    """Look-alike pictures and equal texts of different groups, and which of them cross splits."""


def open_split(
    backbone: Backbone,
    rows: Manifest,
    name: str,
    *,
    ledger: Ledger,
    workers: int | None = None,
    cache: Path | Literal[False] | None = None,
    **sampling: Any,
) -> Split:
    """Decode the pictures or clips of some rows; those that cannot be read go to the ledger."""
    store = open_store(rows, backbone, ledger=ledger, cache=cache, workers=workers, **sampling)
    readable = rows.without(store.unreadable)
    return Split(name, readable, view_of(store, readable.items))


def open_splits(
    manifest: Manifest,
    backbone: Backbone,
    *,
    ledger: Ledger,
    cache: Path | Literal[False] | None = None,
    workers: int | None = None,
    frames: int = 12,
    sampling: str = "1fps",
) -> Splits:
    """Decode every picture once and hand out the splits without those that cannot be read.

    Args:
        manifest: with a split ``train``.
        backbone: prepares the pictures.
        ledger: receives what cannot be read.
        cache: folder of prepared pictures; None for the user's; False for none.
        workers: decoding processes.
        frames: frames per clip when there are videos.
        sampling: which frames, one of `crossadapt.data.frame_choice.SAMPLINGS`.

    Raises:
        UserError: no training split, or no readable picture.
    """
    names = [name for name in ("train", "val", "test") if name in manifest.split_sizes]
    if "train" not in names:
        raise UserError(
            "the data has no training split",
            where=f"splits: {', '.join(manifest.split_sizes)}",
            fix="name one of the splits 'train', or remove the split column",
        )
    parts = {name: manifest.select(name) for name in names}
    column = np.asarray(manifest.table.column("split").to_pylist(), dtype=object)
    used = manifest.take(np.flatnonzero(np.isin(column, names)))
    store = open_store(
        used,
        backbone,
        ledger=ledger,
        cache=cache,
        workers=workers,
        frames=frames,
        sampling=sampling,
    )
    splits = {name: _split(name, part, store) for name, part in parts.items()}
    train = splits["train"]
    if train is None:
        raise UserError(
            "no picture of the training split can be read",
            where=manifest.source,
            fix=ledger.render() or "check the paths",
        )
    pictures = Posters(store) if isinstance(store, FrameStore) else store
    if isinstance(backbone.preprocess, PackedPreprocess):
        # Look-alikes are those of the first member, whatever stands on the canvas beside it.
        pictures = Corner(pictures, backbone.preprocess.parts[0].size)
    duplicates = find_duplicates(used, store=pictures)
    return Splits(train, splits.get("val"), splits.get("test"), duplicates)


def leak_note(found: DuplicateReport) -> str:
    """A warning when test or validation items occur in training too, else nothing."""
    pictures, texts = len(found.picture_leaks), len(found.caption_leaks)
    if not pictures + texts:
        return ""
    return (
        f"note: {pictures} look-alike pictures and {texts} equal texts lie in several splits; "
        "the held-out score counts them (see the report)"
    )


def open_store(
    manifest: Manifest,
    backbone: Backbone,
    *,
    ledger: Ledger,
    cache: Path | Literal[False] | None = None,
    workers: int | None = None,
    frames: int = 12,
    sampling: str = "1fps",
) -> PixelStore | FrameStore:
    """The prepared pictures of a manifest's items, or frames when any of them is a video.

    Args and errors as `open_splits`.
    """
    if "video" not in manifest.table.column("kind").to_pylist():
        return open_pixels(
            manifest.items,
            backbone.preprocess.pixels,
            key=preprocess_key(backbone),
            cache=cache,
            workers=workers,
            ledger=ledger,
        )
    return open_frames(
        manifest.items,
        backbone.preprocess.pixels,
        key=preprocess_key(backbone),
        frames=frames,
        sampling=sampling,
        cache=cache,
        workers=workers,
        ledger=ledger,
        spans=manifest_spans(manifest),
    )


def view_of(store: PixelStore | FrameStore, items: Sequence[str]) -> View | ClipView:
    """The given items of a store, in that order."""
    places = store.positions(items)
    return ClipView(store, places) if isinstance(store, FrameStore) else View(store, places)


def preprocess_key(backbone: Backbone) -> str:
    """Names what a backbone does to a picture, for the pixel cache."""
    preprocess = backbone.preprocess
    described = f"{type(preprocess).__name__} {preprocess!r} {preprocess.size}"
    return hashlib.sha256(described.encode()).hexdigest()


def _split(name: str, manifest: Manifest, store: PixelStore | FrameStore) -> Split | None:
    """The readable part of a split; None when nothing is left."""
    gone = [item for item in manifest.items if item in store.unreadable]
    if len(gone) == len(manifest.items):
        return None
    readable = manifest.without(gone)
    return Split(name, readable, view_of(store, readable.items))
