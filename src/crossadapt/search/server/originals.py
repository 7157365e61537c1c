"""The original bytes of an item, only as long as they are the ones that were indexed.

Which file is read follows from the collection alone. It has to be a regular file, of the stored
size, and its hash has to be the item's id; a file that was replaced since, by accident or to make
the server show another one, is not sent.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from crossadapt.data.decoding import Unreadable
from crossadapt.data.manifest import is_builtin
from crossadapt.errors import UserError
from crossadapt.search.server.failures import Failure

_CHUNK = 1 << 20
_KEPT = 100_000
_ARCHIVES = 8
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypqt", "video/quicktime"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
)
BINARY = "application/octet-stream"


@dataclass
class Original:
    """An open original; whoever has it closes `file`."""

    file: BinaryIO
    start: int
    """Where in `file` it begins."""
    size: int
    media_type: str
    """By its first bytes, whatever its name says; `BINARY` when they are not known."""


class Originals:
    """Opens originals and remembers which files have been verified; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[Any, ...], None] = OrderedDict()
        self._archives: OrderedDict[tuple[Any, ...], dict[str, list[tuple[int, int]]]] = (
            OrderedDict()
        )

    def open(self, name: str, item: str, size: int | None) -> Original:
        """The original of an item.

        Args:
            name: its id.
            item: where it is.
            size: its stored size, if known.

        Raises:
            Failure: 410, it is gone or not what was indexed.
        """
        try:
            if is_builtin(item):
                from crossadapt.data.openmoji import picture_bytes

                return _in_memory(picture_bytes(item))
            path, member = place(item)
            if not member:
                return self._checked(name, _regular(path), 0, size)
            if path.lower().endswith(".tar"):
                return self._member(name, path, member)
            return self._cell(name, path, member)
        except (OSError, ValueError, Unreadable, UserError, tarfile.TarError) as error:
            raise _gone("the original of this item is no longer there") from error

    def _checked(self, name: str, file: BinaryIO, start: int, size: int | None) -> Original:
        """The part of `file` from `start` on, once its hash is known to be `name`."""
        try:
            facts = os.fstat(file.fileno())
            size = facts.st_size - start if size is None else size
            if start + size > facts.st_size or (start == 0 and size != facts.st_size):
                raise _gone("the original of this item has changed since it was indexed")
            # The change time cannot be set by whoever writes the file, unlike the others.
            key = (name, facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, start)
            with self._lock:
                known = key in self._known
            if not known:
                if not _hash(file, start, size).startswith(name):
                    raise _gone("the original of this item has changed since it was indexed")
                with self._lock:
                    self._known[key] = None
                    while len(self._known) > _KEPT:
                        self._known.popitem(last=False)
            file.seek(start)
            kind = media_type(file.read(min(size, 64)))
            return Original(file, start, size, kind)
        except BaseException:
            file.close()
            raise

    def _member(self, name: str, path: str, member: str) -> Original:
        with _regular(path) as file:
            facts = os.fstat(file.fileno())
            key = (path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
            with self._lock:
                members = self._archives.get(key)
            if members is None:
                members = {}
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for entry in archive:
                        if entry.isfile():
                            where = (entry.offset_data, entry.size)
                            members.setdefault(entry.name, []).append(where)
                with self._lock:
                    self._archives[key] = members
                    while len(self._archives) > _ARCHIVES:
                        self._archives.popitem(last=False)
        for start, size in reversed(members.get(member, [])):
            try:
                return self._checked(name, _regular(path), start, size)
            except Failure:
                continue  # an archive may hold the same name twice
        raise _gone("the original of this item is no longer in its archive")

    def _cell(self, name: str, path: str, row: str) -> Original:
        import pyarrow as pa

        from crossadapt.search.archives import ParquetBytes, bytes_column
        from crossadapt.search.sources import Entry

        _regular(path).close()
        try:
            column = bytes_column(Path(path), {})
            entry = Entry(f"{path}#{row}", "", "", row=int(row), column=column)
            content = ParquetBytes().read(entry)
        except pa.ArrowException as error:
            raise _gone("the table of this item cannot be read any more") from error
        if not hashlib.sha256(content).hexdigest().startswith(name):
            raise _gone("the original of this item has changed since it was indexed")
        return _in_memory(content)


def place(item: str) -> tuple[str, str]:
    """The file of an item, and the member or row in it, or an empty string."""
    if os.path.isfile(item):  # a '#' may be part of an ordinary name
        return item, ""
    for suffix in (".tar#", ".parquet#"):
        at = item.lower().find(suffix)
        if at >= 0:
            cut = at + len(suffix)
            return item[: cut - 1], item[cut:]
    return item, ""


def media_type(start: bytes) -> str:
    """The type of pictures and videos by their first bytes; `BINARY` for everything else."""
    for offset, magic, kind in _SIGNATURES:
        if start[offset : offset + len(magic)] == magic:
            return kind
    return BINARY


def _regular(path: str) -> BinaryIO:
    """An open regular file; a pipe or a device is refused without waiting for it."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("not a regular file")
    return os.fdopen(handle, "rb")


def _hash(file: BinaryIO, start: int, size: int) -> str:
    file.seek(start)
    digest = hashlib.sha256()
    while size > 0 and (piece := file.read(min(size, _CHUNK))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()


def _in_memory(content: bytes) -> Original:
    return Original(io.BytesIO(content), 0, len(content), media_type(content[:64]))


def _gone(what: str) -> Failure:
    return Failure(410, what, fix="index again: crossadapt index PATH --collection NAME")
