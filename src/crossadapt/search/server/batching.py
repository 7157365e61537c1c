"""Micro-batching: queries that arrive together are embedded together, each with its own adapter.

One thread embeds. It takes the first job, gives others a few milliseconds to join, and makes one
call per tower for all of them; jobs that come meanwhile form the next batch by themselves. A row
comes out as if it had been alone (see `crossadapt.search.embedder`), so batching changes the speed
and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from crossadapt.search.composing import Vectors
from crossadapt.search.request import Prepared


class Encoder(Protocol):
    """What a batch needs of an embedder."""

    def texts(self, texts: Sequence[str], views: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 (N, D), one view per row."""
        ...

    def pictures(self, pixels: np.ndarray, views: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 (N, D), of uint8 (N, 3, H, W), one view per row."""
        ...


@dataclass(frozen=True)
class Job:
    """One query to embed.

    `names` translates the collection's views into the views of the encoder, which may be shared by
    several collections.
    """

    encoder: Encoder
    prepared: Prepared
    names: dict[str, str]
    future: Future[Vectors] = field(default_factory=Future)

    @property
    def rows(self) -> int:
        """Texts and pictures to embed."""
        parts = len(self.prepared.texts) + (self.prepared.pixels is not None)
        return parts * len(self.prepared.views)


class Batcher:
    """A thread that embeds queries in batches.

    Args:
        wait: seconds the first job of a batch waits for others.
        most: rows at which a batch is full.
        on_batch: told the rows and the seconds of every batch.
    """

    def __init__(
        self,
        *,
        wait: float = 0.003,
        most: int = 64,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self.wait, self.most, self.on_batch = wait, most, on_batch
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="crossadapt-embed", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._jobs)

    def submit(
        self, encoder: Encoder, prepared: Prepared, names: dict[str, str]
    ) -> Future[Vectors]:
        """Queue a query; cancelling the future takes it out again.

        Returns:
            Its vectors, as `crossadapt.search.query.embed` gives them.

        Raises:
            RuntimeError: the batcher is closed.
        """
        job = Job(encoder, prepared, names)
        with self._changed:
            if not self._open:
                raise RuntimeError("the batcher is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Embed what is queued, then stop."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (jobs := self._take()) is not None:
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            began = time.perf_counter()
            by_encoder: dict[int, list[Job]] = {}
            for job in jobs:
                by_encoder.setdefault(id(job.encoder), []).append(job)
            for group in by_encoder.values():
                _finish(group)
            self.on_batch(sum(job.rows for job in jobs), time.perf_counter() - began)

    def _take(self) -> list[Job] | None:
        """The jobs of the next batch; None when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or not self._open)
            if not self._jobs:
                return None
            until = time.monotonic() + self.wait
            while self._open and sum(job.rows for job in self._jobs) < self.most:
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    break
            jobs, rows = [], 0
            while self._jobs and (not jobs or rows + self._jobs[0].rows <= self.most):
                jobs.append(self._jobs.popleft())
                rows += jobs[-1].rows
            return jobs


def _finish(jobs: list[Job]) -> None:
    """Embed the jobs of one encoder and set their futures."""
    try:
        found = embed_all(jobs)
    except Exception as error:
        if len(jobs) == 1:
            jobs[0].future.set_exception(error)
            return
        for job in jobs:  # whoever is at fault must not take the others along
            _finish([job])
        return
    for job, vectors in zip(jobs, found, strict=True):
        job.future.set_result(vectors)


def embed_all(jobs: Sequence[Job]) -> list[Vectors]:
    """Vectors of each job by its own views, with one call per tower for all jobs of one encoder."""
    encoder = jobs[0].encoder
    wanted: dict[tuple[str, str], int] = {}
    pixels: list[np.ndarray] = []
    views: list[str] = []
    for job in jobs:
        for view in job.prepared.views:
            for text in job.prepared.texts:
                # A text that many ask for at the same time is embedded once.
                wanted.setdefault((text, job.names[view]), len(wanted))
            if job.prepared.pixels is not None:
                pixels.append(job.prepared.pixels)
                views.append(job.names[view])
    texts = encoder.texts([text for text, _ in wanted], [v for _, v in wanted]) if wanted else None
    pictures = iter(encoder.pictures(np.concatenate(pixels), views) if pixels else ())
    found: list[Vectors] = []
    for job in jobs:
        vectors: dict[str, dict[str, np.ndarray]] = {view: {} for view in job.prepared.views}
        for view, parts in vectors.items():
            if texts is not None and job.prepared.texts:
                rows = [wanted[text, job.names[view]] for text in job.prepared.texts]
                parts["texts"] = texts[rows]
            if job.prepared.pixels is not None:
                parts["pixels"] = next(pictures)[None]
        found.append(vectors)
    return found
