"""The picture stores that `crossadapt.data.pixels.open_pixels` returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from crossadapt.data.decoding import Unreadable
from crossadapt.data.worker import Transform, prepare


class PixelStore(ABC):
    """Pictures by number: ``store[i]`` is uint8 (3, H, W), a copy of one's own.

    Attributes:
        items: the items in order.
        shape: (3, H, W).
        unreadable: item to reason, of the items that cannot be read.
        readable: bool (items,); ``store[i]`` raises `Unreadable` where it is False.
        cached: whether pixels come from the cache; otherwise each access decodes.
    """

    cached: bool

    def __init__(
        self, items: Sequence[str], shape: tuple[int, ...], failed: Mapping[int, str]
    ) -> None:
        self.items = list(items)
        self.shape = shape
        self.unreadable = {self.items[index]: reason for index, reason in failed.items()}
        self.readable = np.ones(len(self.items), bool)
        self.readable[list(failed)] = False
        self._place = {item: index for index, item in enumerate(self.items)}

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The readable pictures in order."""
        for index in np.flatnonzero(self.readable):
            yield self[int(index)]

    def __getitem__(self, index: int) -> np.ndarray:
        """One picture, uint8 (3, H, W)."""
        if not self.readable[index]:
            raise Unreadable(self.unreadable[self.items[index]])
        return self._get(index)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Several pictures, uint8 (B, 3, H, W)."""
        return np.stack([self[int(index)] for index in indices])

    def positions(self, items: Sequence[str]) -> np.ndarray:
        """Numbers of the given items, int64: from a selected manifest back to this store."""
        return np.array([self._place[item] for item in items], np.int64)

    @abstractmethod
    def _get(self, index: int) -> np.ndarray: ...


class CachedPixels(PixelStore):
    """Pixels from a memory-mapped file; `path` is its folder."""

    cached = True

    def __init__(
        self, items: Sequence[str], pixels: np.ndarray, failed: Mapping[int, str], path: Path
    ) -> None:
        super().__init__(items, pixels.shape[1:], failed)
        self.path = path
        self._pixels = pixels

    def _get(self, index: int) -> np.ndarray:
        return np.array(self._pixels[index])


class LivePixels(PixelStore):
    """The same interface without a cache: every access decodes, in the calling process."""

    cached = False

    def __init__(
        self,
        items: Sequence[str],
        shape: tuple[int, ...],
        failed: Mapping[int, str],
        transform: Transform,
        max_pixels: int,
        reason: str,
    ) -> None:
        super().__init__(items, shape, failed)
        self.reason = reason
        self._transform, self._max_pixels = transform, max_pixels

    def _get(self, index: int) -> np.ndarray:
        return np.array(prepare(self.items[index], self._transform, self._max_pixels))
