"""The frame stores that `crossadapt.data.frames.open_frames` returns.

A record on disk is the F pictures, uint8 F x 3 x H x W, followed by the F times in seconds as
float64, NaN where there is no frame: the mask is what is not NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from crossadapt.data.decoding import Unreadable
from crossadapt.data.frame_choice import Sampling
from crossadapt.data.stores import PixelStore


def record_bytes(frames: int, shape: tuple[int, ...]) -> int:
    """Bytes of the record of one clip of `frames` pictures of `shape`."""
    return frames * (int(np.prod(shape)) + 8)


@dataclass(frozen=True, eq=False)
class Shard:
    """Records of some items, memory-mapped, and the reasons of the rows that have none."""

    path: Path
    records: np.ndarray
    failed: Mapping[int, str]


class Reads(Protocol):
    """What `LiveFrames` needs of a reader."""

    @property
    def sampling(self) -> Sampling:
        """Rule and number of frames."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, H, W) of one picture."""
        ...

    def read_item(self, item: str, max_pixels: int) -> np.ndarray:
        """The record of an item."""
        ...


class FrameStore(ABC):
    """Clips by number: ``store[i]`` is (uint8 (F, 3, H, W), bool (F,)), copies of one's own.

    The mask is True where there is a frame; the rest of the pictures is zero.

    Attributes:
        items: the items in order.
        frames: F.
        shape: (3, H, W).
        unreadable: item to reason, of the items that cannot be read.
        readable: bool (items,); ``store[i]`` raises `Unreadable` where it is False.
        cached: whether frames come from the cache; otherwise each access decodes.
    """

    cached: bool

    def __init__(
        self,
        items: Sequence[str],
        frames: int,
        shape: tuple[int, ...],
        failed: Mapping[int, str],
    ) -> None:
        self.items = list(items)
        self.frames, self.shape = frames, shape
        self.unreadable = {self.items[index]: reason for index, reason in failed.items()}
        self.readable = np.ones(len(self.items), bool)
        self.readable[list(failed)] = False
        self._place = {item: index for index, item in enumerate(self.items)}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One clip: uint8 (F, 3, H, W) and its mask, bool (F,)."""
        pixels, times = self._split(self._record(index))
        return pixels, ~np.isnan(times)

    def times(self, index: int) -> np.ndarray:
        """Seconds of each frame from the start of the file, float64 (F,), NaN where masked."""
        return self._split(self._record(index))[1]

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Several clips: uint8 (B, F, 3, H, W) and bool (B, F)."""
        clips = [self[int(index)] for index in indices]
        return np.stack([pixels for pixels, _ in clips]), np.stack([mask for _, mask in clips])

    def positions(self, items: Sequence[str]) -> np.ndarray:
        """Numbers of the given items, int64: from a selected manifest back to this store."""
        return np.array([self._place[item] for item in items], np.int64)

    def _record(self, index: int) -> np.ndarray:
        if not self.readable[index]:
            raise Unreadable(self.unreadable[self.items[index]])
        return self._get(index)

    def _split(self, record: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self.frames * int(np.prod(self.shape))
        pixels = record[:size].reshape(self.frames, *self.shape)
        return pixels, record[size:].copy().view(np.float64)

    @abstractmethod
    def _get(self, index: int) -> np.ndarray: ...


class CachedFrames(FrameStore):
    """Frames from memory-mapped shards: `places` holds the shard and row of each item."""

    cached = True

    def __init__(
        self,
        items: Sequence[str],
        places: Sequence[tuple[Shard, int]],
        frames: int,
        shape: tuple[int, ...],
    ) -> None:
        failed = {
            index: shard.failed[row]
            for index, (shard, row) in enumerate(places)
            if row in shard.failed
        }
        super().__init__(items, frames, shape, failed)
        self._places = list(places)

    @property
    def paths(self) -> list[Path]:
        """Folders of the shards that hold these items, sorted."""
        return sorted({shard.path for shard, _ in self._places})

    def _get(self, index: int) -> np.ndarray:
        shard, row = self._places[index]
        return np.array(shard.records[row])


class LiveFrames(FrameStore):
    """The same interface without a cache: every access decodes, in the calling process."""

    cached = False

    def __init__(
        self,
        items: Sequence[str],
        failed: Mapping[int, str],
        reader: Reads,
        max_pixels: int,
        reason: str,
    ) -> None:
        super().__init__(items, reader.sampling.frames, reader.shape, failed)
        self.reason = reason
        self._reader, self._max_pixels = reader, max_pixels

    def _get(self, index: int) -> np.ndarray:
        return self._reader.read_item(self.items[index], self._max_pixels)


class Posters(PixelStore):
    """One picture per clip, the middle one of its frames: what look-alike clips are found by."""

    def __init__(self, store: FrameStore) -> None:
        failed = {
            index: store.unreadable[store.items[index]]
            for index in np.flatnonzero(~store.readable).tolist()
        }
        super().__init__(store.items, store.shape, failed)
        self.cached = store.cached
        self._store = store

    def _get(self, index: int) -> np.ndarray:
        pixels, mask = self._store[index]
        return np.array(pixels[(int(mask.sum()) - 1) // 2])
