"""Picture files to vectors: decoded in worker processes while the model works on those before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from crossadapt.data import pool
from crossadapt.data.decoding import MAX_PIXELS
from crossadapt.data.ledger import Ledger
from crossadapt.search.card import FROZEN
from crossadapt.search.embedder import Embedder
from crossadapt.search.pixel_reader import PixelReader
from crossadapt.search.runtime_sample import first_pictures
from crossadapt.search.runtimes import choose


def embed_files(
    embedder: Embedder,
    paths: Sequence[str | Path],
    view: str = FROZEN,
    *,
    workers: int | None = None,
    batch_size: int = 64,
    timeout: float = 60.0,
    max_pixels: int = MAX_PIXELS,
    ledger: Ledger | None = None,
    runtime: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of picture files, without a collection.

    Decoding runs in processes of its own while the model works. Large JPEGs are decoded near the
    size that the model needs, see `docs/indexing.md`.

    Args:
        embedder: has the view.
        paths: files, or built-in names.
        view: ``frozen`` or an adapter's name.
        workers: processes that decode; one per processor, up to 8, when None; 0 decodes here.
        batch_size: pictures in one forward pass.
        timeout: seconds for one picture in a worker; then it is given up.
        max_pixels: pictures with more pixels are not decoded.
        ledger: receives what cannot be read (stage ``decode``).
        runtime: what runs the view from now on, as for `crossadapt.search.runtimes.choose`, which
            compares on the first files; what runs it already when None.

    Returns:
        float32 (N, D) of length one, zero where a file could not be read, and bool (N,), whether
        it could.

    Raises:
        UserError: an unknown view or runtime, or a runtime that cannot be used or is refused.
    """
    embedder.view(view)
    preprocess = embedder.backbone.preprocess
    reader = PixelReader(preprocess.array, preprocess.needs)
    job = pool.Job(reader, (), None, max_pixels, timeout)
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    workers = min(workers, len(paths))
    if runtime is not None:
        items = ((pool.Task(index, str(path)), None) for index, path in enumerate(paths))
        take = partial(first_pictures, embedder, items, workers, timeout, max_pixels)
        choose(embedder, view, runtime, take)
    vectors = np.zeros((len(paths), embedder.dim), np.float32)
    readable = np.zeros(len(paths), bool)
    batch = np.empty((batch_size, 3, *preprocess.size), np.uint8)
    rows: list[int] = []

    def encode() -> None:
        vectors[rows] = embedder.pictures(batch[: len(rows)], view)
        readable[rows] = True
        rows.clear()

    tasks = (pool.Task(index, str(path)) for index, path in enumerate(paths))
    for index, answer in pool.stream(job, tasks, workers, 2 * batch_size + 2 * workers):
        if answer["reason"] is not None:
            if ledger is not None:
                ledger.add(str(paths[index]), answer["reason"], "decode")
            continue
        batch[len(rows)] = np.frombuffer(answer["pixels"], np.uint8).reshape(batch.shape[1:])
        rows.append(index)
        if len(rows) == batch_size:
            encode()
    if rows:
        encode()
    return vectors, readable
