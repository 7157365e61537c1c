"""The pictures and captions that runtimes are compared on: the first ones of a job."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from crossadapt.data import pool
from crossadapt.search.pixel_reader import PixelReader
from crossadapt.search.runtime_gate import SAMPLE, Sample, sample_of

if TYPE_CHECKING:
    from crossadapt.search.embedder import Embedder


def first_pictures(
    embedder: Embedder,
    items: Iterable[tuple[pool.Task, str | None]],
    workers: int,
    timeout: float,
    max_pixels: int,
) -> Sample | None:
    """The first of `items` that can be read, with their captions; None where none can.

    Args:
        embedder: says how a picture is prepared.
        items: picture and one caption of it, or None; at most `SAMPLE` are read.
        workers: processes that decode; 0 decodes here.
        timeout: seconds for one picture in a worker.
        max_pixels: pictures with more pixels are not decoded.
    """
    preprocess = embedder.backbone.preprocess
    job = pool.Job(PixelReader(preprocess.array, preprocess.needs), (), None, max_pixels, timeout)
    some = list(islice(items, SAMPLE))
    tasks = (pool.Task(row, task.item, task.content) for row, (task, _) in enumerate(some))
    pixels: list[np.ndarray] = []
    captions: list[str | None] = []
    for row, answer in pool.stream(job, tasks, min(workers, len(some)), SAMPLE):
        if answer["reason"] is None:
            found = np.frombuffer(answer["pixels"], np.uint8)
            pixels.append(found.reshape(3, *preprocess.size))
            captions.append(some[row][1])
    return sample_of(pixels, captions) if pixels else None
