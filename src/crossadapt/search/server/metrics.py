"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

if TYPE_CHECKING:
    from crossadapt.search.server.catalogue import Served

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters, gauges and histograms; safe to use from several threads."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time and open files, on Linux
        self._requests = Counter(
            "crossadapt_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "crossadapt_request_seconds",
            "Time from request to the end of the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "crossadapt_refused",
            "Searches refused with 429 because all slots, or the memory for uploads, were taken.",
            ["reason"],
            registry=registry,
        )
        self._taken = Gauge(
            "crossadapt_searches", "Searches under way or waiting.", registry=registry
        )
        self._waiting = Gauge(
            "crossadapt_queue_depth", "Queries waiting to be embedded.", registry=registry
        )
        self._rows = Histogram(
            "crossadapt_batch_rows",
            "Texts and pictures embedded together.",
            buckets=_ROWS,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "crossadapt_batch_seconds",
            "Time to embed a batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        names = ["collection"]
        self._count = Gauge(
            "crossadapt_collection_rows", "Rows of a collection.", names, registry=registry
        )
        self._unindexed = Gauge(
            "crossadapt_collection_unindexed_rows",
            "Rows that its index does not cover yet.",
            names,
            registry=registry,
        )
        self._recall = Gauge(
            "crossadapt_collection_index_recall",
            "Measured recall of its index; 1 for exact search.",
            names,
            registry=registry,
        )
        self._version = Gauge(
            "crossadapt_collection_version", "Version that is served.", names, registry=registry
        )
        self._opened = Counter(
            "crossadapt_collection_versions",
            "Versions served since the start, the first included.",
            names,
            registry=registry,
        )
        self._reload_failures = Counter(
            "crossadapt_reload_failures",
            "Times that looking for rebuilt collections failed.",
            registry=registry,
        )

    def watch(self, taken: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Where the two gauges of the queue are read from."""
        self._taken.set_function(taken)
        self._waiting.set_function(waiting)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request is answered."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """One search is refused."""
        self._refused.labels(reason).inc()

    def batch(self, rows: int, seconds: float) -> None:
        """One batch is embedded."""
        self._rows.observe(rows)
        self._batch_seconds.observe(seconds)

    def collection(self, served: Served) -> None:
        """A version of a collection is served from now on."""
        name, stats = served.card.name, served.stats
        self._count.labels(name).set(stats["rows"])
        self._unindexed.labels(name).set(stats["unindexed_rows"])
        recall = stats["recall"]
        self._recall.labels(name).set(float("nan") if recall is None else recall)
        self._version.labels(name).set(stats["version"])
        self._opened.labels(name).inc()

    def reload_failed(self) -> None:
        """Looking for rebuilt collections failed."""
        self._reload_failures.inc()

    def render(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)
