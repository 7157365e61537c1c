"""Nearest-neighbour queries through LanceDB's asynchronous interface, several at the same time.

Its synchronous one waits for another thread at each of its steps, and asks for the schema at most
of them: a fifth of a query among a million rows, and no two of them ever overlap.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

_AT_ONCE = 8
"""Queries under way at the same time; more were no faster on two cores."""

ResultT = TypeVar("ResultT")


class Connection:
    """Opens tables for queries; nothing is connected before the first of them.

    Args:
        uri, options: as for ``lancedb.connect``.
    """

    def __init__(self, uri: str, options: Mapping[str, str]) -> None:
        self._uri, self._options = uri, dict(options) or None
        self._connection: Any = None

    def table(self, name: str, version: int) -> Queries:
        """Queries of a table as it is at that version, whatever is written later."""
        return Queries(_wait_for(self._open(name, version)))

    async def _open(self, name: str, version: int) -> Any:
        import lancedb

        if self._connection is None:
            # One for all tables: it knows which parts of the indexes are in memory.
            self._connection = await lancedb.connect_async(self._uri, storage_options=self._options)
        table = await self._connection.open_table(name)
        await table.checkout(version)
        return table


class Queries:
    """Asks one version of a table; from any thread."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def nearest(
        self, column: str, vectors: np.ndarray, k: int, where: str | None, probes: int | None
    ) -> list[pa.Table]:
        """``id`` and ``_distance`` of the nearest rows of each vector (Q, D), best first.

        `where` is a condition in SQL.
        """

        async def all_of_them() -> list[pa.Table]:
            free = asyncio.Semaphore(_AT_ONCE)

            async def one(vector: np.ndarray) -> pa.Table:
                query = self._table.vector_search(vector).column(column).distance_type("dot")
                query = query.select(["id", "_distance"]).limit(k)
                query = query if where is None else query.where(where)
                query = query if probes is None else query.nprobes(probes)
                async with free:
                    return await query.to_arrow()

            return await asyncio.gather(*map(one, vectors))

        return _wait_for(all_of_them())


def _wait_for(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    future = asyncio.run_coroutine_threadsafe(work, _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:
        future.cancel()  # interrupted: nobody asks for the answer any more
        raise


@functools.cache
def _loop(_process: int) -> asyncio.AbstractEventLoop:
    """The event loop of this process, in a thread of its own; a forked one does not inherit it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="crossadapt-queries", daemon=True).start()
    return loop
