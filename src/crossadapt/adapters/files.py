"""Write files so that what was there before survives every failure."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from crossadapt.errors import UserError

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_FULL[errno.EFBIG] = "the file would exceed the allowed file size"


def write_bytes(path: Path, data: bytes) -> None:
    """Write and flush to disk. The one place where adapter folders meet the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` (name to content) into `folder`: all are written aside first, then renamed.

    Nothing in the folder changes until every byte is on disk, so a full disk or a kill while
    writing leaves the old files intact. They are renamed in the order given. Other files of the
    folder are left alone.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    aside: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the folder, so that the renames stay on one file system.
        aside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        for name, data in files.items():
            write_bytes(aside / name, data)
        for name in files:
            os.replace(aside / name, folder / name)
        _sync(folder)
    except OSError as error:
        reason = _FULL.get(error.errno or 0, error.strerror or str(error))
        fix = "free some space" if error.errno in _FULL else "give a folder that can be written"
        raise UserError(
            f"the adapter could not be saved: {reason}",
            where=str(folder),
            fix=f"{fix} and save again; files saved before are intact",
        ) from error
    finally:
        if aside is not None:
            _remove(aside)


def _remove(aside: Path) -> None:
    # Left-overs cost a few megabytes; failing to remove them must not hide the first error.
    with contextlib.suppress(OSError):
        for file in aside.iterdir():
            file.unlink()
        aside.rmdir()


def _sync(folder: Path) -> None:
    """Make renames durable where the system can open folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
