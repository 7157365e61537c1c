"""How many searches may be under way, how long one may take, and what happens when nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from starlette.requests import Request

from crossadapt.search.server.failures import Failure

ResultT = TypeVar("ResultT")

GONE = 499
"""Status in the metrics of a request whose client left before the answer; nobody reads it."""


class Admission:
    """Slots for searches and bytes for uploads; used on the event loop only.

    Args:
        slots: searches under way or waiting.
        memory: bytes of uploads held at the same time.
        timeout: seconds a search may take.
        on_refusal: told the reason, ``queue`` or ``uploads``.
    """

    def __init__(
        self,
        slots: int,
        memory: int,
        timeout: float,
        on_refusal: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.slots, self.memory, self.timeout = slots, memory, timeout
        self.on_refusal = on_refusal
        self.taken = 0
        self.held = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """One search.

        Raises:
            Failure: 429, all slots are taken.
        """
        if self.taken >= self.slots:
            self.on_refusal("queue")
            raise Failure(
                429,
                f"{self.taken} searches are waiting already",
                fix="try again in a second",
                headers={"Retry-After": "1"},
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    @contextmanager
    def upload(self) -> Iterator[Callable[[int], None]]:
        """One upload; call the result with the bytes of every piece that arrives.

        Raises:
            Failure: 429, other uploads hold all the memory there is for them.
        """
        mine = 0

        def arrived(count: int) -> None:
            nonlocal mine
            if self.held + count > self.memory:
                self.on_refusal("uploads")
                raise Failure(
                    429,
                    "too many pictures are being uploaded",
                    fix="try again in a second",
                    headers={"Retry-After": "1"},
                )
            mine += count
            self.held += count

        try:
            yield arrived
        finally:
            self.held -= mine

    async def in_time(self, work: Awaitable[ResultT]) -> ResultT:
        """The result of `work`, which is cancelled when the time is up.

        Raises:
            Failure: 503, it took too long.
        """
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            raise Failure(
                503,
                f"the search took longer than {self.timeout:g} seconds",
                fix="try again; if it goes on, the server needs more power or a larger --timeout",
                headers={"Retry-After": "2"},
            ) from None


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of `work`, which is cancelled when the client goes away.

    The request's body must have been read.

    Raises:
        Failure: the client went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Failure(GONE, "the client went away")
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
