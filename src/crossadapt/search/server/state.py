"""Everything the routes share: collections, batcher, slots, threads, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request

from crossadapt.search.collection import Collections
from crossadapt.search.server.admission import Admission
from crossadapt.search.server.batching import Batcher
from crossadapt.search.server.catalogue import Catalogue
from crossadapt.search.server.engines import Engines
from crossadapt.search.server.metrics import Metrics
from crossadapt.search.server.originals import Originals
from crossadapt.search.server.settings import Settings

log = logging.getLogger("crossadapt.server")

ResultT = TypeVar("ResultT")

_RELOAD_SHARE = 0.1
"""Reloading may take this share of the time while a collection is being written."""


class State:
    """What one server holds; made before it listens, closed after its last answer.

    Args:
        home: where the collections are.
        names: those to serve.
        settings: limits.
        engines: the models; new ones unless given.

    Raises:
        UserError: there is no such collection, or its model is gone or another.
    """

    def __init__(
        self,
        home: Collections,
        names: Sequence[str],
        settings: Settings,
        engines: Engines | None = None,
    ) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.catalogue = Catalogue(home, names, engines or Engines(), self.metrics.collection)
        self.batcher = Batcher(
            wait=settings.batch_seconds, most=settings.batch_rows, on_batch=self.metrics.batch
        )
        self.admission = Admission(
            settings.queue, settings.upload_memory, settings.timeout, self.metrics.refused
        )
        self.metrics.watch(lambda: self.admission.taken, lambda: len(self.batcher))
        self.originals = Originals()
        cores = os.cpu_count() or 1
        # Pictures are decoded in few threads, so that a large one holds up pictures only.
        self.decoding = ThreadPoolExecutor(2, "crossadapt-decode")
        self.searching = ThreadPoolExecutor(max(2, min(cores, 16)), "crossadapt-search")
        # One re-ranking at a time, so that it holds up other re-rankings and no plain search.
        self.judging = ThreadPoolExecutor(1, "crossadapt-judge")
        self.reading = ThreadPoolExecutor(4, "crossadapt-read")
        self._reloading = ThreadPoolExecutor(1, "crossadapt-reload")
        self._watcher: asyncio.Task[None] | None = None

    async def run(
        self, pool: ThreadPoolExecutor, work: Callable[..., ResultT], *args: Any
    ) -> ResultT:
        """The result of ``work(*args)`` in a pool; taken out of its queue when cancelled."""
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)

    def start(self) -> None:
        """Begin to look for rebuilt collections; call it on the event loop."""
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Finish what is queued and stop all threads."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self.batcher.close()
        for pool in (self.decoding, self.searching, self.judging, self.reading, self._reloading):
            pool.shutdown(cancel_futures=True)

    async def _watch(self) -> None:
        pause = self.settings.reload_seconds
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            try:
                await self.run(self._reloading, self.catalogue.reload)
            except Exception:
                log.exception("looking for rebuilt collections failed")
                self.metrics.reload_failed()
            took = time.monotonic() - began
            pause = max(self.settings.reload_seconds, took / _RELOAD_SHARE - took)


def state_of(request: Request) -> State:
    """The state of the server that answers `request`."""
    state: State = request.app.state.server
    return state
