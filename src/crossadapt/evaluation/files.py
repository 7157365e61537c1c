"""Whole files or none: written beside the target under another name, then renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from crossadapt.errors import UserError


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) to `path`, making its folder; an old file survives failure.

    Raises:
        UserError: the disk is full, the folder cannot be written, or `path` is a folder.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files that only the owner can read
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(
            f"cannot write the file: {error.strerror or error}",
            where=str(path),
            fix="free some space or choose another folder",
        ) from error
    return path
