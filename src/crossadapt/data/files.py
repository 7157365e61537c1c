"""Where cached things live, and writing files so that a crash never leaves half of one."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from crossadapt.errors import UserError


def cache_dir() -> Path:
    """The cache folder: ``$CROSSADAPT_CACHE`` when set, otherwise ``~/.cache/crossadapt``.

    Everything in it can be deleted at any time; it is made again when needed.
    """
    named = os.environ.get("CROSSADAPT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "crossadapt"


def make_folder(folder: Path) -> Path:
    """Create a folder with its parents, or raise a `UserError` that says why it cannot exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create a folder: {error.strerror or error}",
            where=str(folder),
            fix="choose a folder you may write to; the cache folder is set by CROSSADAPT_CACHE",
        ) from error
    return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename; readers see the old file or the new one.

    Raises:
        UserError: the disk is full or the folder cannot be written; an old file stays intact.
    """
    make_folder(path.parent)
    # Not tempfile: its files are private to the user, and a cache or an export may be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write a file: {error.strerror or error}",
            where=str(path),
            fix="free some disk space or choose another folder",
        ) from error


def keep_bytes(content: bytes, folder: str) -> Path:
    """Store picture bytes in the cache under the hash of their content and return the path.

    Data sets that carry pictures inside a table become files this way, so that everything
    behind the readers deals with paths only.

    Args:
        content: an encoded picture (JPEG, PNG, …), as it is.
        folder: name of the folder inside the cache's ``items``.
    """
    digest = hashlib.sha256(content).hexdigest()[:32]
    path = cache_dir() / "items" / folder / digest[:2] / digest
    if not path.exists():
        write_atomically(path, content)
    return path
