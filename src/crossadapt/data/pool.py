"""Decoding in processes that may die or hang: each such picture costs one ledger line."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossadapt.data.worker import Transform, setup_line
from crossadapt.errors import UserError

_COMMAND = "from crossadapt.data.worker import main; raise SystemExit(main())"
START_SECONDS = 180.0
"""A worker imports what the transform needs; on a loaded machine that takes a while."""


@dataclass(frozen=True)
class Job:
    """What all workers of one pass share.

    Attributes:
        transform: picklable; picture to uint8 array of `shape`.
        shape: what the transform returns.
        path: ``.npy`` file the arrays are written to by index, or None to check readability only.
        max_pixels: cap of the decoder.
        timeout: seconds after which a picture is given up and its worker replaced.
    """

    transform: Transform
    shape: tuple[int, ...]
    path: Path | None
    max_pixels: int
    timeout: float


class _Worker:
    """One process and the thread that feeds it."""

    def __init__(self, job: Job, setup: bytes, tasks: Iterator, results: queue.Queue) -> None:
        self.job, self.setup, self.tasks, self.results = job, setup, tasks, results
        self.process: subprocess.Popen[bytes] | None = None
        self.deadline: float | None = None
        self.timed_out = False
        self.stopping = False
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            for index, item in self.tasks:
                if self.stopping:
                    break
                self.results.put((index, self._decode(index, item)))
            self.results.put(None)
        except Exception as error:
            # Raised again in the caller's thread, which is waiting for results.
            self.results.put(error)
        finally:
            self.kill()

    def _decode(self, index: int, item: str) -> str | None:
        if self.process is None:
            self._start()
        answer = self._ask(json.dumps([index, item]).encode() + b"\n", self.job.timeout)
        if answer is not None:
            return answer["reason"]
        code = self.kill()
        if self.timed_out:
            return f"timed out: decoding took more than {self.job.timeout:g} s"
        return f"worker died: exit code {code} while decoding"

    def _start(self) -> None:
        places = [place for place in sys.path if place]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places),
            # Workers are the parallelism; threads inside them would only compete.
            "OMP_NUM_THREADS": "1",
        }
        with self.lock:
            if self.stopping:
                raise RuntimeError("decoding was stopped")
            self.process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        answer = self._ask(self.setup, START_SECONDS)
        if answer is None or "fatal" in answer:
            what = answer["fatal"] if answer else f"exit code {self.kill()}"
            raise UserError(
                f"a decoding worker cannot start: {what}",
                where="preprocessing transform",
                fix="define the transform in an importable module, or decode with workers=0",
            )

    def _ask(self, line: bytes, seconds: float) -> dict | None:
        """Send one line and read one; None when the process died or was killed for its time."""
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        self.timed_out = False
        self.deadline = time.monotonic() + seconds
        try:
            process.stdin.write(line)
            process.stdin.flush()
            reply = process.stdout.readline()
            return json.loads(reply) if reply.endswith(b"\n") else None
        except OSError:
            return None
        finally:
            self.deadline = None

    def check_time(self) -> None:
        """Kill the process when its picture takes too long; its thread then reads an end."""
        deadline, process = self.deadline, self.process
        if deadline is not None and process is not None and time.monotonic() > deadline:
            self.timed_out = True
            process.kill()

    def kill(self) -> int | None:
        """End the process and return its exit code."""
        with self.lock:
            process, self.process = self.process, None
        if process is None:
            return None
        # A process that died by itself keeps its own exit code.
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # unsent bytes to a process that is gone
        return code


class _Tasks:
    """An iterator that several threads may draw from."""

    def __init__(self, items: Sequence[tuple[int, str]]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()

    def __iter__(self) -> _Tasks:
        return self

    def __next__(self) -> tuple[int, str]:
        with self._lock:
            return next(self._items)


def run(
    job: Job,
    items: Sequence[tuple[int, str]],
    workers: int,
    report: Callable[[int, str | None], None],
) -> None:
    """Decode (index, item) pairs in `workers` processes.

    Args:
        job: what to do.
        items: indices into the target file, and items.
        workers: number of processes, at least 1.
        report: called in this thread for each item with its index and a reason or None.

    Raises:
        UserError: the transform cannot be sent to a process, or no worker starts.
    """
    try:
        setup = setup_line(job.transform, job.path, job.shape, job.max_pixels)
    except Exception as error:
        # pickle raises errors of several kinds, some of its own
        raise UserError(
            f"the preprocessing cannot be sent to worker processes: {error}",
            where="transform",
            fix="use a module-level function or a picklable object, or decode with workers=0",
        ) from error
    results: queue.Queue = queue.Queue()
    tasks = _Tasks(items)
    pool = [_Worker(job, setup, tasks, results) for _ in range(min(workers, len(items)))]
    running = len(pool)
    try:
        for worker in pool:
            worker.thread.start()
        while running:
            try:
                result = results.get(timeout=0.1)
            except queue.Empty:
                result = False
            for worker in pool:
                worker.check_time()
            if result is False:
                continue
            if isinstance(result, Exception):
                raise result
            if result is None:
                running -= 1
            else:
                report(*result)
    finally:
        for worker in pool:
            worker.stopping = True
            worker.kill()
        for worker in pool:
            if worker.thread.ident is not None:
                worker.thread.join()
