"""What a run tells: a JSONL file for programs, a progress line for people."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from crossadapt.files import write_file

PLAIN_SECONDS = 15.0
"""Seconds between two plain progress lines when there is no terminal."""


class Events:
    """One line of JSON per event: `event`, `step`, `time` (Unix seconds) and what belongs to it.

    Kinds: `config`, `zero-shot`, `step` (loss, lr, pairs per second, peak memory in MiB), `eval`,
    `saved`, `end`. A resumed run drops what lies after the checkpoint it starts from, so the file
    reads as if the run had never been interrupted.
    """

    def __init__(self, path: Path | None, *, after: int | None = None) -> None:
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _until(path, after) if after is not None and path.exists() else ""
            write_file(path, kept)
        self._file = path.open("a", encoding="utf-8", buffering=1) if path is not None else None

    def add(self, event: str, step: int, **values: Any) -> None:
        """Append one event."""
        if self._file is not None:
            line = {"event": event, "step": step, "time": round(time.time(), 3), **values}
            self._file.write(json.dumps(line, default=str) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file; a line cut short by a crash is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def _until(path: Path, step: int) -> str:
    """The file's events up to a step, without the end of an earlier attempt."""
    kept = [e for e in read_events(path) if e["step"] <= step and e["event"] != "end"]
    return "".join(json.dumps(event) + "\n" for event in kept)


class Meter:
    """Says when a step is worth a line (at most about a thousand a run) and how fast it goes."""

    def __init__(self, total: int) -> None:
        self._every = max(1, total // 1000)
        self.rate = 0.0
        self.restart()

    def restart(self) -> None:
        """Leave out the time since the last count; call after a validation."""
        self._pairs, self._since = 0, time.monotonic()

    def count(self, step: int, pairs: int) -> bool:
        """Count a step of so many pairs; true when it should be reported with `rate` (pairs/s)."""
        self._pairs += pairs
        if step % self._every:
            return False
        self.rate = round(self._pairs / max(time.monotonic() - self._since, 1e-9), 2)
        self.restart()
        return True


def format_scores(scores: Mapping[str, float]) -> str:
    """Scores on one line."""
    return "  ".join(f"{k} {v:.2f}" for k, v in scores.items()) or "no validation data"


class Display:
    """Progress for people: a bar on a terminal, otherwise a plain line every few seconds.

    With `quiet` (or on any process but the first) nothing is shown.
    """

    def __init__(self, total: int, start: int, *, quiet: bool, console: Console | None = None):
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.total, self.start, self.quiet = total, start, quiet
        self._begin = self._last = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=total, completed=start)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, loss: float, lr: float, rate: float) -> None:
        """Show a finished step; `rate` is in pairs per second."""
        text = f"loss {loss:.4f}  lr {lr:.2e}  {rate:.0f} pairs/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            return
        now = time.monotonic()
        if self.quiet or (now - self._last < PLAIN_SECONDS and step < self.total):
            return
        self._last = now
        left = (now - self._begin) / max(1, step - self.start) * (self.total - step)
        self.console.print(f"step {step}/{self.total}  {text}  {_clock(left)} left", soft_wrap=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            console = self._bar.console if self._bar is not None else self.console
            console.print(text, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def reset_peak_memory() -> None:
    """Start measuring the peak anew, so that several runs of one process can be told apart."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    marker = Path("/proc/self/clear_refs")
    if marker.exists():
        try:
            marker.write_text("5")
        except OSError:
            return  # not allowed in this sandbox: the peak stays that of the whole process


def peak_memory() -> float:
    """Largest memory in MiB since the last reset: the GPU's if there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
