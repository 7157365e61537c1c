"""Write files so that what was there before survives every failure.

Everything is written under a temporary name beside its target, flushed to the disk, and renamed.
A kill, a crash or a full disk leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from crossadapt.errors import UserError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the allowed file size",
}


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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place only when the block succeeds.

    Raises:
        UserError: the disk is full or the place cannot be written; an old file is intact. Errors
            of the block that have nothing to do with writing pass through.
    """
    make_folder(path.parent)
    # Not tempfile: its files are private to the user, and what is written here may be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        raise unwritten(reason, path) from error
    finally:
        with contextlib.suppress(OSError):  # must not hide the first error
            temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> Path:
    """Write a whole file (text as UTF-8) through `replacing`; returns its path.

    Raises:
        UserError: as `replacing`.
    """
    with replacing(path) as temporary:
        write_bytes(temporary, content.encode("utf-8") if isinstance(content, str) else content)
    return path


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put several `files` (name to content) into `folder`: all are written, then all renamed.

    Nothing in the folder changes until every byte is on disk. They are renamed in the order given;
    other files of the folder are left alone.

    Raises:
        UserError: as `replacing`.
    """
    make_folder(folder)
    aside = {name: folder / f".{name}.{os.getpid()}-{threading.get_ident()}" for name in files}
    try:
        for name, content in files.items():
            write_bytes(aside[name], content)
        for name in files:
            os.replace(aside[name], folder / name)
        _sync(folder)
    except OSError as error:
        raise unwritten(write_failure(error) or str(error), folder) from error
    finally:
        for temporary in aside.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write and flush to the disk; what the functions above do with a temporary name."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_failure(error: BaseException) -> str | None:
    """Why writing failed, or None for an error that is not about writing.

    Libraries that write through Rust, such as safetensors, report a full disk in words only.
    """
    if isinstance(error, OSError):
        return _FULL.get(error.errno or 0, error.strerror or str(error))
    full = "No space left" in str(error) or "File too large" in str(error)
    return f"the disk is full ({error})" if full else None


def unwritten(reason: str, where: Path) -> UserError:
    """The error for something that could not be written."""
    return UserError(
        f"could not be saved: {reason}",
        where=str(where),
        fix="free some space or choose a folder you may write to, and go on; "
        "what was saved before is intact",
    )


def _sync(folder: Path) -> None:
    """Make renames durable where the system can open folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
