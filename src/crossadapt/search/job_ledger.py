"""The ledger of an indexing job: a file beside the collection that says what is not in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from crossadapt.data.ledger import Ledger, LedgerEntry
from crossadapt.files import unwritten, write_failure, write_file

DUPLICATE = "duplicate"
"""Stage of lines about items that share another item's row: noted, but not lost."""


class JobLedger:
    """Lines are appended as they come; at the end the file says what is true of the sources now.

    Args:
        path: the file; None puts it beside a collection in a folder (``NAME.ledger.jsonl``), and
            keeps it in memory for an object store.
        uri: where the collection is.
        name: the collection's name.
    """

    def __init__(self, path: Path | None, uri: str, name: str) -> None:
        if path is None and "://" not in uri:
            path = Path(uri) / f"{name}.ledger.jsonl"
        self.path = path
        self.found = Ledger()
        """Lines of this run."""

    @property
    def shown(self) -> str:
        """The file's name, empty for one in memory."""
        return str(self.path) if self.path is not None else ""

    def add(self, item: str, reason: str, stage: str) -> None:
        """Note an item, in the file at once.

        Raises:
            UserError: the file cannot be written.
        """
        self.found.add(item, reason, stage)
        if self.path is None:
            return
        try:
            Ledger(self.path).add(item, reason, stage)
        except OSError as error:
            raise unwritten(write_failure(error) or str(error), self.path) from error

    def close(self, items: Sequence[str], sources: Sequence[str]) -> None:
        """Write the file anew: this run's lines, and older ones about other sources.

        Args:
            items: everything in the sources of this run.
            sources: absolute names of the sources.
        """
        if self.path is None:
            return
        mine = self.found.entries
        now = {*items, *(entry.item for entry in mine)}
        before = Ledger(self.path).entries if self.path.exists() else []
        kept = [e for e in before if e.item not in now and not _within(e.item, sources)]
        lines = [json.dumps(asdict(entry)) + "\n" for entry in dict.fromkeys([*kept, *mine])]
        if lines or before:
            write_file(self.path, "".join(lines))

    def reasons(self) -> dict[str, int]:
        """Kinds of reasons with counts, of everything in the file that is lost."""
        whole = Ledger(self.path) if self.path is not None and self.path.exists() else self.found
        lost: list[LedgerEntry] = [e for e in whole.entries if e.stage != DUPLICATE]
        return dict(Counter(entry.kind for entry in lost).most_common())


def _within(item: str, sources: Sequence[str]) -> bool:
    return any(item == s or item.startswith((f"{s}/", f"{s}#", f"{s}:")) for s in sources)
