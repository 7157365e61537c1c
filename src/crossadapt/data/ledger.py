"""The list of inputs that failed, with reasons: a run goes on, and nothing is lost silently."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from crossadapt.files import make_folder


@dataclass(frozen=True)
class LedgerEntry:
    """One input that was left out: what, why, and in which stage (``read``, ``decode``, …)."""

    item: str
    reason: str
    stage: str

    @property
    def kind(self) -> str:
        """The part of the reason before the first colon, under which the summary counts."""
        return self.reason.partition(":")[0].strip()


class Ledger:
    """Collects `LedgerEntry` lines, in memory and, when a path is given, in a JSONL file.

    Every entry is kept once. Threads may share one ledger; processes may share one file: a line
    is appended in one write, and lines written by others are read back before each look. An
    existing file is continued, so a resumed run does not repeat its lines.

    Args:
        path: the JSONL file, or None to keep entries in memory only.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self._entries: dict[LedgerEntry, None] = {}
        self._offset = 0
        self._lock = threading.RLock()
        if self.path is not None:
            make_folder(self.path.parent)
            self._finish_torn_line()

    def add(self, item: str | Path, reason: str, stage: str = "read") -> None:
        """Note that `item` was left out; the same entry twice is one entry."""
        entry = LedgerEntry(str(item), reason, stage)
        with self._lock:
            self._refresh()
            if entry in self._entries:
                return
            self._entries[entry] = None
            if self.path is not None:
                line = json.dumps(asdict(entry)) + "\n"
                self._append(line.encode())

    @property
    def entries(self) -> list[LedgerEntry]:
        """All entries in the order in which they came, those of other processes included."""
        with self._lock:
            self._refresh()
            return list(self._entries)

    def summary(self) -> dict[str, int]:
        """How many inputs failed for each kind of reason, most frequent first."""
        return dict(Counter(entry.kind for entry in self.entries).most_common())

    def render(self) -> str:
        """The summary as one line of text, or an empty string when nothing failed."""
        counts = self.summary()
        if not counts:
            return ""
        listed = ", ".join(f"{kind} ({count})" for kind, count in counts.items())
        return f"{sum(counts.values())} inputs left out: {listed}"

    def __len__(self) -> int:
        return len(self.entries)

    def __bool__(self) -> bool:
        # An empty ledger is still a ledger: `ledger or Ledger()` must not replace it.
        return True

    def __iter__(self) -> Iterator[LedgerEntry]:
        return iter(self.entries)

    def _append(self, line: bytes) -> None:
        if self.path is None:
            return
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)

    def _finish_torn_line(self) -> None:
        # A process killed while writing leaves a line without its end; the next must not join it.
        if self.path is None or not self.path.exists():
            return
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def _refresh(self) -> None:
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                entry = LedgerEntry(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the torn line of a killed process
            self._entries.setdefault(entry)
