"""Exported towers on disk: made once per model, adapter, strength and versions.

An entry is a folder in the cache: the towers' files, ``files.json`` with their hashes, and
``measured.json`` with what the gate and the comparison of speed found. It appears complete or not
at all. An entry of which a file is missing or has other bytes is made again. Entries can be deleted
at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossadapt.data.files import cache_dir
from crossadapt.errors import UserError
from crossadapt.files import make_folder, write_failure, write_file

_FORMAT = 3
"""Raised when the way towers are exported changes."""
_FILES = "files.json"
_MEASURED = "measured.json"


@dataclass(frozen=True)
class Entry:
    """Files of one model with one adapter at one strength.

    Args:
        fingerprint: of the embedder's view: backbone, adapter, strength.
        made_by: names and versions of what makes the files.
    """

    fingerprint: str
    made_by: str

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        facts = [_FORMAT, self.fingerprint, self.made_by]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        return cache_dir() / "runtimes" / key

    def whole(self) -> bool:
        """Whether every file is there with the bytes that were written."""
        try:
            hashes = json.loads((self.folder / _FILES).read_text(encoding="utf-8"))
            return bool(hashes) and all(
                _hash(self.folder / name) == value for name, value in hashes.items()
            )
        except (OSError, ValueError, AttributeError):
            return False

    def make(self, write: Callable[[Path], None]) -> None:
        """Replace the entry by what `write` puts into a new folder.

        Raises:
            UserError: the cache is full or cannot be written; or whatever `write` raises. Nothing
                is left behind.
        """
        make_folder(self.folder.parent)
        aside = self.folder.parent / f".{self.folder.name}.{uuid.uuid4().hex}"
        try:
            aside.mkdir()
            write(aside)
            hashes = {file.name: _hash(file) for file in sorted(aside.iterdir())}
            write_file(aside / _FILES, json.dumps(hashes))
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was faster; its files are alike
                os.rename(aside, self.folder)
        except OSError as error:
            raise UserError(
                f"the exported model cannot be cached: {write_failure(error)}",
                where=str(self.folder),
                fix="free some space, or set CROSSADAPT_CACHE to a folder on another disk",
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def measured(self, what: str) -> dict[str, Any]:
        """What was remembered under a name; empty when nothing was, or it cannot be read."""
        found = self._measured().get(what)
        return found if isinstance(found, dict) else {}

    def remember(self, what: str, facts: dict[str, Any]) -> None:
        """Add to what was measured."""
        write_file(self.folder / _MEASURED, json.dumps(self._measured() | {what: facts}, indent=1))

    def _measured(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / _MEASURED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
