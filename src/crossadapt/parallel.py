"""Threads for work that numpy does without the interpreter's lock."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def threads() -> int:
    """How many threads to use: ``OMP_NUM_THREADS``, or one per core, at most 8."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(limit) if limit.isdigit() and int(limit) else os.cpu_count() or 1, 8)


def spread(work: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> list[ResultT]:
    """``[work(item) for item in items]``, by several threads where there are several items."""
    if len(items) < 2 or threads() < 2:
        return [work(item) for item in items]
    return list(_pool(os.getpid()).map(work, items))


@functools.cache
def _pool(_process: int) -> ThreadPoolExecutor:
    """The threads of this process; a forked one does not inherit them."""
    return ThreadPoolExecutor(threads(), thread_name_prefix="crossadapt")
