"""Making a cache folder: an array of decoded items that appears only when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from crossadapt.data import pool
from crossadapt.data.decoding import Unreadable
from crossadapt.data.worker import prepare
from crossadapt.errors import UserError
from crossadapt.files import make_folder


class Building:
    """A folder under a temporary name that gets its real one when the block ends well.

    Args:
        folder: its final name.
        shape: of the uint8 array ``pixels.npy`` made in it, filled by `decode_all`.

    Raises:
        UserError: there is no room for the array.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape = folder, shape
        self.target = folder.with_name(f"{folder.name}.partial-{os.getpid()}-{id(self):x}")

    def __enter__(self) -> Path:
        make_folder(self.target)
        try:
            path = self.target / "pixels.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=self.shape)
            if hasattr(os, "posix_fallocate"):
                # Without this a full disk kills the process that writes, instead of an error here.
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            shutil.rmtree(self.target, ignore_errors=True)
            raise UserError(
                f"no room for the pixel cache: {error.strerror or error}",
                where=str(self.folder.parent),
                fix="free some disk space, or set CROSSADAPT_CACHE to a folder on another disk",
            ) from error
        return self.target

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and not self.folder.exists():
                # Another process may finish the same cache first: then either will do.
                with suppress(FileExistsError, OSError):
                    self.target.rename(self.folder)
        finally:
            shutil.rmtree(self.target, ignore_errors=True)


def decode_all(
    job: pool.Job,
    items: Sequence[str],
    workers: int | None,
    progress: Callable[[int, int], None] | None,
    alone_below: int = 256,
) -> dict[int, str]:
    """Decode items into the job's file, here or in processes; reasons of failures by number.

    Args:
        job: what to do with each item, and where arrays go.
        items: row i of the file belongs to ``items[i]``.
        workers: processes; 0 decodes here; None takes min(8, processors), or none below
            `alone_below` items.
        progress: called with (done, total).
        alone_below: how many items are worth the start of worker processes.
    """
    if workers is None:
        workers = 0 if len(items) < alone_below else min(8, os.cpu_count() or 1)
    failed: dict[int, str] = {}
    done = 0

    def report(index: int, reason: str | None) -> None:
        nonlocal done
        done += 1
        if reason is not None:
            failed[index] = reason
        if progress is not None:
            progress(done, len(items))

    if workers > 0 and items:
        pool.run(job, list(enumerate(items)), workers, report)
    else:
        target = np.load(job.path, mmap_mode="r+") if job.path is not None else None
        for index, item in enumerate(items):
            try:
                array = prepare(item, job.transform, job.max_pixels)
                if array.shape != job.shape:
                    raise Unreadable(f"preprocessing failed: shape {array.shape}")
                if target is not None:
                    target[index] = array
                report(index, None)
            except Unreadable as error:
                report(index, error.reason)
    return dict(sorted(failed.items()))
