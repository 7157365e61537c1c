"""How far an indexing job is: a bar on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0
"""Seconds between two plain lines when there is no terminal."""


class JobDisplay:
    """Shows items done, their rate, the time left, and how many were skipped and failed.

    Args:
        total: items of the job.
        skipped: those of them that were done before; they do not count for the rate.
        quiet: show nothing.
    """

    def __init__(
        self, total: int, skipped: int, *, quiet: bool = False, console: Console | None = None
    ) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.total, self.skipped, self.quiet = total, skipped, quiet
        self.done, self.failed = skipped, 0
        self._begin = self._last = time.monotonic()
        self._work = 0
        self._bar: Progress | None = None
        if not quiet and self.console.is_terminal and total > skipped:
            self._bar = Progress(
                TextColumn("{task.completed:,}/{task.total:,}"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=total, completed=skipped)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, *, skipped: int = 0, failed: int = 0, embedded: int = 0) -> None:
        """Count further items by what became of them."""
        self.skipped += skipped
        self.failed += failed
        self._work += embedded + failed
        self.done += skipped + failed + embedded
        now = time.monotonic()
        rate = self._work / max(now - self._begin, 1e-9)
        text = f"{rate:,.0f} items/s  {self.skipped:,} skipped  {self.failed:,} failed"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=text)
        elif not self.quiet and now - self._last >= PLAIN_SECONDS:
            self._last = now
            left = _clock((self.total - self.done) / rate) if rate else "unknown time"
            self.console.print(f"{self.done:,}/{self.total:,}  {text}  {left} left", soft_wrap=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            console = self._bar.console if self._bar is not None else self.console
            console.print(text, soft_wrap=True, markup=False)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
