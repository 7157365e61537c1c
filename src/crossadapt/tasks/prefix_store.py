"""Hidden states of many rows in memory-mapped shards, each checked before it is used."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crossadapt.files import replacing, write_file

SHARD_BYTES = 256 * 2**20
FREE_SHARE = 0.5
KEEP_DAYS = 14.0
_BLOCK = 2**24
_TYPES = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.float16: np.float16}

Compute = Callable[[np.ndarray], list[Tensor]]
"""Row numbers to the hidden states (length, width) of each of these rows."""


class PrefixStore:
    """Rows of hidden states (length, width) on disk, each row of a length of its own.

    A shard holds consecutive rows one behind the other, and a file beside it its size and
    checksum, written last. What is missing, cut short or changed is computed again, shard by
    shard; so is what an interrupted run did not come to.

    Args:
        folder: named after all that decides the values.
        lengths: tokens of every row, int64 (N,).
        width: channels.
        dtype: float32, float16 or bfloat16.
    """

    def __init__(
        self, folder: Path, lengths: Sequence[int] | np.ndarray, width: int, dtype: torch.dtype
    ) -> None:
        self.folder, self.width, self.dtype = folder, width, dtype
        self.lengths = np.asarray(lengths, np.int64)
        self._type = np.dtype(_TYPES[dtype])
        widest = int(self.lengths.max()) * width * self._type.itemsize
        self.per_shard = max(1, SHARD_BYTES // widest)
        ends = np.cumsum(self.lengths)
        first = (ends - self.lengths)[:: self.per_shard]
        # Where each row begins within its shard, in tokens.
        self._starts = ends - self.lengths - np.repeat(first, self.per_shard)[: len(ends)]
        self._shards: list[np.ndarray] = []

    @property
    def size(self) -> int:
        """Size of all shards."""
        return int(self.lengths.sum()) * self.width * self._type.itemsize

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are not there whole; each is read once."""
        return [k for k in range(self._count) if not self._whole(k)]

    @property
    def _count(self) -> int:
        return -(-len(self.lengths) // self.per_shard)

    def fill(self, compute: Compute, missing: Sequence[int], batch: int = 64) -> None:
        """Compute and write the `missing` shards, then map all of them.

        Raises:
            UserError: the disk is full or cannot be written; no half shard is left.
        """
        for number in missing:
            rows = self._rows(number)
            sum_ = 0
            with replacing(self._path(number)) as temporary, temporary.open("wb") as file:
                for start in range(0, len(rows), batch):
                    for value in compute(rows[start : start + batch]):
                        content = self._as_bytes(value)
                        sum_ = zlib.crc32(content, sum_)
                        file.write(content)
            facts = {"bytes": self._size(number), "crc32": sum_}
            write_file(self._facts(number), json.dumps(facts))
        self.open()

    def open(self) -> None:
        """Map all shards, and note that they were used."""
        self._shards = [
            np.memmap(self._path(k), self._type, "r").reshape(-1, self.width)
            for k in range(self._count)
        ]
        with contextlib.suppress(OSError):
            os.utime(self.folder)

    def read(self, rows: np.ndarray, length: int) -> Tensor:
        """Hidden states (B, length, width) of rows; zeros behind the end of a shorter one."""
        found = np.zeros((len(rows), length, self.width), self._type)
        for target, row in zip(found, rows.tolist(), strict=True):
            start, count = self._starts[row], min(int(self.lengths[row]), length)
            target[:count] = self._shards[row // self.per_shard][start : start + count]
        tensor = torch.from_numpy(found)
        return tensor if tensor.dtype == self.dtype else tensor.view(self.dtype)

    def _rows(self, number: int) -> np.ndarray:
        start = number * self.per_shard
        return np.arange(start, min(start + self.per_shard, len(self.lengths)))

    def _size(self, number: int) -> int:
        return int(self.lengths[self._rows(number)].sum()) * self.width * self._type.itemsize

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.bin"

    def _facts(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"

    def _as_bytes(self, value: Tensor) -> bytes:
        value = value.detach().to("cpu").contiguous()
        return (
            (value.view(torch.int16) if self.dtype == torch.bfloat16 else value).numpy().tobytes()
        )

    def _whole(self, number: int) -> bool:
        """Whether a shard is what was written: its size and its checksum."""
        try:
            facts = json.loads(self._facts(number).read_text())
            if not facts["bytes"] == self._size(number) == self._path(number).stat().st_size:
                return False
            found = 0
            with self._path(number).open("rb") as file:
                while block := file.read(_BLOCK):
                    found = zlib.crc32(block, found)
            return found == facts["crc32"]
        except (OSError, ValueError, KeyError, TypeError):
            return False


def room(folder: Path) -> int:
    """Bytes that a cache in `folder` may take: half of what is free on its disk."""
    return int(shutil.disk_usage(folder).free * FREE_SHARE)


def clean(folder: Path) -> None:
    """Remove caches below `folder` that no run has opened for two weeks."""
    oldest = time.time() - KEEP_DAYS * 86400
    for entry in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if entry.is_dir() and entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True)
