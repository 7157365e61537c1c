"""A client with many connections that compares every answer with the one given alone."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SAME = 2e-5
"""Cosines that are this near are the same: the sums of a batch come in another order."""


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    waited: float
    """Seconds of Retry-After, or 0."""


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Answer:
    """One request on an open connection."""
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.I)
    body = await reader.readexactly(int(length[1])) if length else b""
    retry = re.search(rb"retry-after: (\d+)", head, re.I)
    return Answer(int(head.split(b" ", 2)[1]), body, float(retry[1]) if retry else 0)


@dataclass
class Load:
    """What the connections saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    dropped: int = 0
    different: int = 0
    """Answers of another kind, with other hits or with another cosine than alone."""
    largest_difference: float = 0.0
    """Of a cosine under load and alone."""
    without_retry_after: int = 0

    def compare(self, found: bytes, expected: dict[str, Any]) -> None:
        """Note how an answer differs from the one given alone."""
        hits, wanted = json.loads(found)["hits"], expected["hits"]
        if len(hits) != len(wanted):
            self.different += 1
            return
        apart = max(abs(a["cosine"] - b["cosine"]) for a, b in zip(hits, wanted, strict=True))
        self.largest_difference = max(self.largest_difference, apart)
        # Equal scores may come in either order; everything else has its place.
        moved = any(
            a["id"] != b["id"] and abs(a["cosine"] - b["cosine"]) > SAME
            for a, b in zip(hits, wanted, strict=True)
        )
        self.different += moved or apart > SAME

    def to_dict(self, seconds: float) -> dict[str, Any]:
        """For the document."""
        latencies = sorted(self.latencies)
        count = len(latencies)
        return {
            "answers": count,
            "per_second": round(count / seconds, 1),
            **{
                f"p{share}_ms": round(1000 * latencies[min(count - 1, count * share // 100)])
                for share in (50, 95, 99)
            },
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "dropped_connections": self.dropped,
            "other_results_than_alone": self.different,
            "largest_cosine_difference": self.largest_difference,
            "refusals_without_retry_after": self.without_retry_after,
        }


async def alone(port: int, asked: list[bytes]) -> list[dict[str, Any]]:
    """The answer to each request, one after another on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = [json.loads((await ask(reader, writer, request)).body) for request in asked]
    writer.close()
    return found


async def load(
    port: int, connections: int, seconds: float, asked: list[bytes], expected: list[dict[str, Any]]
) -> Load:
    """Everything the connections saw in that time."""
    seen = Load()
    until = time.monotonic() + seconds

    async def one(seed: int) -> None:
        choose = random.Random(seed)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while time.monotonic() < until:
                number = choose.randrange(len(asked))
                began = time.perf_counter()
                answer = await ask(reader, writer, asked[number])
                seen.latencies.append(time.perf_counter() - began)
                seen.statuses[answer.status] += 1
                if answer.status == 200:
                    seen.compare(answer.body, expected[number])
                elif answer.status == 429:
                    seen.without_retry_after += not answer.waited
                    await asyncio.sleep(0.05)  # sooner than told, so that it stays full
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            seen.dropped += 1

    await asyncio.gather(*(one(seed) for seed in range(connections)))
    return seen


async def refused(port: int) -> float:
    """How many searches the server says it has refused because its queue was full."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = await ask(reader, writer, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    writer.close()
    found = re.search(rb'refused_total\{reason="queue"\} ([\d.]+)', answer.body)
    return float(found[1]) if found else 0.0
