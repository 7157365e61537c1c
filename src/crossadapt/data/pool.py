"""Decoding in processes that may die or hang: each such picture costs one ledger line.

`run` decodes a list of items into one shared array. `stream` hands out whatever a transform makes
of each item, in order and as it is asked for, with a bounded number of items on their way.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossadapt.data.worker import Transform, answer_task, setup_line
from crossadapt.errors import UserError

_COMMAND = "from crossadapt.data.worker import main; raise SystemExit(main())"
START_SECONDS = 180.0
"""A worker imports what the transform needs; on a loaded machine that takes a while."""


@dataclass(frozen=True)
class Job:
    """What all workers of one pass share.

    Attributes:
        transform: picklable; picture to uint8 array of `shape`, or, for `stream`, an object with
            a method ``read_task`` (see `crossadapt.data.worker.answer_task`).
        shape: what the transform returns; not used by `stream`.
        path: ``.npy`` file the arrays are written to by index, or None to check readability only.
        max_pixels: cap of the decoder.
        timeout: seconds after which a picture is given up and its worker replaced.
    """

    transform: Transform
    shape: tuple[int, ...]
    path: Path | None
    max_pixels: int
    timeout: float


@dataclass(frozen=True)
class Task:
    """One item by its place in the order; `content` holds its bytes if they have been read."""

    index: int
    item: Any
    content: bytes | None = None


class _Worker:
    """One process and the thread that feeds it."""

    def __init__(self, job: Job, setup: bytes, tasks: Iterator[Task], results: queue.Queue) -> None:
        self.job, self.setup, self.tasks, self.results = job, setup, tasks, results
        self.process: subprocess.Popen[bytes] | None = None
        self.deadline: float | None = None
        self.timed_out = False
        self.stopping = False
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            for task in self.tasks:
                if self.stopping:
                    break
                self.results.put((task.index, self._decode(task)))
            self.results.put(None)
        except Exception as error:
            # Raised again in the caller's thread, which is waiting for results.
            self.results.put(error)
        finally:
            self.kill()

    def _decode(self, task: Task) -> dict[str, Any]:
        if self.process is None:
            self._start()
        request = [task.index, task.item]
        content = task.content or b""
        if task.content is not None:
            request.append(len(content))
        answer = self._ask(json.dumps(request).encode() + b"\n" + content, self.job.timeout)
        if answer is not None:
            return answer
        code = self.kill()
        if self.timed_out:
            return {"reason": f"timed out: decoding took more than {self.job.timeout:g} s"}
        return {"reason": f"worker died: exit code {code} while decoding"}

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

    def _ask(self, request: bytes, seconds: float) -> dict[str, Any] | None:
        """Send a request and read its answer; None when the process died or was killed."""
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        self.timed_out = False
        self.deadline = time.monotonic() + seconds
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
            if not line.endswith(b"\n"):
                return None
            answer = json.loads(line)
            for name, size in answer.pop("blobs").items():
                answer[name] = process.stdout.read(size)
                if len(answer[name]) < size:
                    return None
            return answer
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
    """An iterator that several threads may draw from, as far as there are permits."""

    def __init__(self, tasks: Iterable[Task], permits: threading.Semaphore | None = None) -> None:
        self._tasks = iter(tasks)
        self._permits = permits
        self._lock = threading.Lock()
        self.stopping = False

    def __iter__(self) -> _Tasks:
        return self

    def __next__(self) -> Task:
        while self._permits is not None and not self._permits.acquire(timeout=0.1):
            if self.stopping:
                raise StopIteration
        with self._lock:
            if self.stopping:
                raise StopIteration
            return next(self._tasks)


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
    tasks = _Tasks(Task(index, item) for index, item in items)
    for index, answer in _serve(job, tasks, min(workers, len(items))):
        report(index, answer["reason"])


def stream(
    job: Job, tasks: Iterable[Task], workers: int, window: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, answer) for each task, in the order of the tasks.

    Workers go on while the caller is busy, up to `window` tasks ahead of it; so memory holds that
    many answers at most, however many tasks there are.

    Args:
        job: with a transform that has ``read_task``; its `path` and `shape` are not used.
        tasks: numbered 0, 1, 2, …; drawn one at a time, from threads of the pool.
        workers: processes; 0 reads here, where a stuck item cannot be given up.
        window: tasks that may be on their way, at least 1.

    Yields:
        The index and what ``read_task`` returned, ``reason`` None; or only a ``reason``.

    Raises:
        UserError: as `run`.
    """
    if workers < 1:
        for task in tasks:
            yield task.index, answer_task(task.item, task.content, job.transform, job.max_pixels)
        return
    permits = threading.Semaphore(window)
    waiting: dict[int, dict[str, Any]] = {}
    due = 0
    with contextlib.closing(_serve(job, _Tasks(tasks, permits), workers)) as served:
        for index, answer in served:
            waiting[index] = answer
            while due in waiting:
                yield due, waiting.pop(due)
                permits.release()
                due += 1


def _serve(
    job: Job, tasks: _Tasks, workers: int
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Answers as they come, from `workers` processes."""
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
    pool = [_Worker(job, setup, tasks, results) for _ in range(workers)]
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
                yield result
    finally:
        tasks.stopping = True
        for worker in pool:
            worker.stopping = True
            worker.kill()
        for worker in pool:
            if worker.thread.ident is not None:
                worker.thread.join()
