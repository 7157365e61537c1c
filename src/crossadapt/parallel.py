"""Threads for work that numpy does without the interpreter's lock."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_AHEAD = 2
"""Items begun per thread before the first of them is asked for."""


def threads() -> int:
    """How many threads to use: ``OMP_NUM_THREADS``, or one per core, at most 8.

    Inside a thread of `spread` or `stream` it is 1: the others have work of their own.
    """
    if getattr(_here, "worker", False):
        return 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(limit) if limit.isdigit() and int(limit) else os.cpu_count() or 1, 8)


def spread(work: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> list[ResultT]:
    """``[work(item) for item in items]``, by several threads where there are several items."""
    if len(items) < 2 or threads() < 2:
        return [work(item) for item in items]
    return list(_pool(os.getpid()).map(work, items))


def stream(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """``map(work, items)`` by several threads, each matrix product inside `work` by one of them.

    For pieces that are multiplied and then looked at: what follows the product is done by all
    threads, too, while its numbers are in the cache. Results come in the order of the items, and
    no more than a few items are held at once. Where there is but one item, its products are made
    by as many threads as numpy takes.
    """
    left = iter(items)
    some = list(itertools.islice(left, 2))
    left = itertools.chain(some, left)
    if len(some) < 2 or threads() < 2:
        yield from map(work, left)
        return
    pool, begun = _pool(os.getpid()), deque[Future[ResultT]]()
    with _single_products():
        try:
            for item in itertools.islice(left, _AHEAD * threads()):
                begun.append(pool.submit(work, item))
            while begun:
                found = begun.popleft().result()
                begun.extend(pool.submit(work, item) for item in itertools.islice(left, 1))
                yield found
        finally:
            for future in begun:
                future.cancel()


_here = threading.local()


@functools.cache
def _pool(_process: int) -> ThreadPoolExecutor:
    """The threads of this process; a forked one does not inherit them."""

    def mark() -> None:
        _here.worker = True

    return ThreadPoolExecutor(threads(), thread_name_prefix="crossadapt", initializer=mark)


_controller = functools.cache(ThreadpoolController)
_lock = threading.Lock()
_users = 0
_limit: Any = None


@contextmanager
def _single_products() -> Iterator[None]:
    """numpy's matrix library uses one thread per call, until the last caller leaves."""
    global _users, _limit
    with _lock:
        _users += 1
        if _users == 1:
            _limit = _controller().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _limit.restore_original_limits()
