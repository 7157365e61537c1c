"""``chunk: auto``: rows per chunk of the gradient cache, from measured activations and free memory.

What autograd keeps for the backward pass is counted while a few rows are encoded. Counting needs
neither a clock nor the high-water mark of the process, so the same model and rows give the same
count on every machine; only the memory that is free differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from crossadapt.training.gradient_cache import Encode

SHARE = 0.5
"""Of the free memory, what kept activations may take: the rest is for what a pass needs in passing,
for batches of longer texts, the loss, and whatever else runs."""
_PROBE = 8


@dataclass(frozen=True)
class ChunkChoice:
    """How many rows are encoded at a time, and from what that follows.

    `rows` are those of a batch on this process, `budget` the bytes their activations may take,
    `per_row` the bytes kept for a row of each stream. A `chunk` of all rows is the plain pass,
    which encodes once.
    """

    chunk: int
    rows: int
    budget: int
    per_row: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        """For the event log."""
        return {
            "chunk": self.chunk,
            "rows": self.rows,
            "budget": self.budget,
            "per_row": dict(self.per_row),
        }

    def sentence(self) -> str:
        """For a person."""
        whole = self.rows * sum(self.per_row.values())
        largest = self.chunk * max(self.per_row.values())
        what = f"{self.chunk} rows at a time ({_mib(largest)})"
        if self.chunk >= self.rows:
            what = "the whole batch at once"
        elif largest > self.budget:
            what = f"1 row at a time, although it takes {_mib(largest)}"
        return (
            f"chunk auto: {what}; activations of all {self.rows} rows take {_mib(whole)}, and "
            f"{SHARE:.0%} of the free memory are {_mib(self.budget)}"
        )


def choose(rows: int, budget: int, per_row: Mapping[str, int]) -> ChunkChoice:
    """The whole batch if it fits, else the largest power of two of rows that does, at least 1.

    A plain pass holds all streams at once, a chunk is of one stream.
    """
    chunk = rows
    if rows * sum(per_row.values()) > budget:
        chunk = 1
        while 2 * chunk < rows and 2 * chunk * max(per_row.values()) <= budget:
            chunk *= 2
    return ChunkChoice(chunk, rows, budget, per_row)


def measure(
    encode: Encode, inputs: Mapping[str, tuple[Tensor, ...]], there: Iterable[Tensor]
) -> dict[str, int]:
    """Bytes kept for one row of each stream, the mean over the first eight of a batch.

    Args:
        encode: see `gradient_cache.backward`; it draws random numbers as ever.
        inputs: per stream, the tensors of a batch.
        there: tensors that are in memory anyway, such as the weights.
    """
    there = list(there)
    found = {}
    for name, tensors in inputs.items():
        piece = tuple(x[:_PROBE] for x in tensors)
        count = kept_bytes(lambda name=name, piece=piece: encode(name, piece), there)
        found[name] = -(-count // len(piece[0]))
    return found


def kept_bytes(run: Callable[[], Tensor], there: Iterable[Tensor] = ()) -> int:
    """Bytes of memory that autograd keeps for the backward pass of what `run` returns.

    Memory that several kept tensors share counts once, and that of tensors in `there` not at all.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        # The graph holds what it is given, so no address is used twice while the result lives.
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        _result = run()
    for tensor in there:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def budget(device: torch.device, processes: int) -> int:
    """Bytes that kept activations of one of several processes may take."""
    return int(free_memory(device) * SHARE / (1 if device.type == "cuda" else processes))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device, within the limit of a container if there is one.

    A system that does not tell (no ``/proc``) counts as having 2 GiB.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_meminfo(Path("/proc/meminfo")), _container(Path("/sys/fs/cgroup"))]
    return min((value for value in found if value is not None), default=2 * 2**30)


def _meminfo(file: Path) -> int | None:
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")), None)


def _container(folder: Path) -> int | None:
    """What a control group leaves; None without one or without a limit."""
    try:
        limit, used = ((folder / f"memory.{x}").read_text().strip() for x in ("max", "current"))
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
