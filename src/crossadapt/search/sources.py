"""What an indexing job reads: folders, tables and manifests, archives, built-in data.

A scan gives one `Entry` per item, in a fixed order, without opening a picture or clip. Contents are
read later by workers; only those of Parquet files pass through this process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossadapt.data.frames import span_of
from crossadapt.data.ledger import Ledger
from crossadapt.data.manifest import is_builtin
from crossadapt.data.readers import detect  # the package, because importing it registers all
from crossadapt.data.readers.registry import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Reader,
    Request,
)
from crossadapt.data.readers.sidecar import walk
from crossadapt.errors import UserError

__all__ = ["Entry", "scan"]

SPLIT = "split"
"""Attribute that keeps the split of data that come with one."""
_DELIMITED = (".csv", ".tsv")
_UNCAPTIONED = "image without caption"


@dataclass(slots=True)
class Entry:
    """One item of a source."""

    item: str
    """Absolute path, ``archive.tar#member``, ``file.parquet#row``, or a built-in name."""
    where: str | list[Any] | dict[str, Any]
    """How a worker reads it: a path or built-in name, [archive, offset, size], or
    {"video": path}, with "span": [first, last second] where only a part counts."""
    group: str
    texts: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    loose: bool = False
    """Whether attributes are texts from a delimited file, which has no types."""
    size: int | None = None
    """Bytes, where that is known without reading."""
    modified: float = 0.0
    """Modification time (Unix seconds) of the file or its archive; 0 when there is none."""
    row: int = -1
    """Row in a Parquet file with the pictures inside, else -1."""
    column: str = ""
    """The column of that file that holds the pictures."""
    kind: str = "image"
    """``image`` or ``video``."""


def scan(
    sources: Sequence[str], *, columns: Mapping[str, str] | None = None, ledger: Ledger
) -> list[Entry]:
    """Every item of the sources, each once, in order.

    An item that comes twice keeps its first place; captions and attributes are taken from the
    first source that has any. Pictures and videos without a caption are items too.

    Args:
        sources: folders (walked recursively, archives inside them included), tables, manifests,
            Parquet files with paths or with bytes, WebDataset ``.tar`` files, ``openmoji``,
            ``hf:NAME``.
        columns: which columns of tables are ours, as for `crossadapt.read_manifest`.
        ledger: receives what is left out, stage ``read``.

    Raises:
        UserError: nothing there, an unknown kind of file, a wrong column, or no item at all.
    """
    found: dict[str, Entry] = {}
    for source in sources:
        for entry in _read(source, dict(columns or {}), ledger):
            known = found.setdefault(entry.item, entry)
            if known is not entry and not known.texts and not known.attributes:
                known.texts, known.attributes = entry.texts, entry.attributes
                known.loose, known.group = entry.loose, entry.group
    if not found:
        raise UserError(
            "no picture or video was found",
            where=", ".join(sources) or "no path was given",
            fix=ledger.render() or "name a folder with pictures or videos, a table, or an archive",
        )
    return list(found.values())


def _read(source: str, columns: dict[str, str], ledger: Ledger) -> Iterator[Entry]:
    path = Path(source).expanduser()
    if path.suffix.lower() == ".tar" and path.is_file():
        from crossadapt.search.archives import tar_entries

        yield from tar_entries(path.absolute(), ledger)
    elif path.is_dir():
        yield from _folder(path, columns, ledger)
    else:
        yield from _file(source, path, columns, ledger)


def _file(source: str, path: Path, columns: dict[str, str], ledger: Ledger) -> Iterator[Entry]:
    if path.is_file() and path.suffix.lower() == ".parquet":
        from crossadapt.search.archives import bytes_column, parquet_entries

        if column := bytes_column(path, columns):
            yield from parquet_entries(path.absolute(), column, columns, ledger)
            return
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        yield from _media(path.absolute(), path.name, ledger)
        return
    shown = source if source.startswith("hf:") or is_builtin(f"{source}:") else str(path)
    loose = path.suffix.lower() in _DELIMITED
    yield from _rows(detect(shown), shown, columns, ledger, loose)


def _folder(path: Path, columns: dict[str, str], ledger: Ledger) -> Iterator[Entry]:
    """Captioned items in the order of their table, then all others in the order of their names."""
    files = walk(path.absolute())
    reader = _reader(path)
    seen: set[str] = set()
    if reader is not None:
        loose = not any(path.glob("**/metadata.[jp]*")) and reader.name == "table"
        # A folder of side-car texts has no columns; the option is meant for other sources then.
        asked = {} if reader.name == "sidecar" else columns
        for entry in _rows(reader, str(path), asked, ledger, loose):
            seen.add(entry.item)
            yield entry
    for file in files:
        suffix = file.suffix.lower()
        if str(file) in seen:
            continue
        if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            yield from _media(file, file.relative_to(path.absolute()).as_posix(), ledger)
        elif suffix == ".tar":
            yield from _read(str(file), columns, ledger)
        elif suffix == ".parquet" and file.stem not in ("metadata", "manifest"):
            from crossadapt.search.archives import bytes_column, parquet_entries

            if column := bytes_column(file, columns):
                yield from parquet_entries(file, column, columns, ledger)


def _reader(path: Path) -> Reader | None:
    """The reader of a captioned folder; None for pictures (or archives) alone."""
    try:
        return detect(str(path))
    except UserError:
        return None


def _rows(
    reader: Reader, source: str, columns: dict[str, str], ledger: Ledger, loose: bool
) -> Iterator[Entry]:
    """One entry per item of what a reader finds."""
    noted = Ledger()
    request = Request(source.removeprefix("hf:"), columns, None, noted, texts_needed=False)
    reader.read(request)
    for entry in noted:
        # Not a loss here: pictures of a folder that no row names are found by the walk.
        if entry.kind != _UNCAPTIONED:
            ledger.add(entry.item, entry.reason, entry.stage)
    merged: dict[str, Entry] = {}
    for row in request.rows:
        values = dict(row)
        item, text = values.pop("item"), values.pop("text")
        kind, group, split = (values.pop(name) for name in ("kind", "group", "split"))
        if split:
            values[SPLIT] = split
        entry = merged.get(item)
        if entry is not None:
            entry.texts += (text,) if text else ()
        elif (found := _entry(item, kind, group, ledger)) is not None:
            found.texts, found.attributes, found.loose = (text,) * bool(text), values, loose
            span = span_of(item, values.get("start"), values.get("end"))
            if isinstance(found.where, dict) and span is not None:
                # JSON has no infinity: an open end stays open.
                found.where["span"] = [span[0], span[1] if math.isfinite(span[1]) else None]
            merged[item] = found
    yield from merged.values()


def _media(file: Path, group: str, ledger: Ledger) -> Iterator[Entry]:
    kind = "video" if file.suffix.lower() in VIDEO_SUFFIXES else "image"
    if (entry := _entry(str(file), kind, group, ledger)) is not None:
        yield entry


def _entry(item: str, kind: str, group: str, ledger: Ledger) -> Entry | None:
    """An entry with size and time of its file; None, with a ledger line, if it has no place."""
    try:
        item.encode()
    except UnicodeEncodeError:
        shown = item.encode("utf-8", "backslashreplace").decode()
        ledger.add(shown, "bad file name: it is not valid UTF-8, rename it")
        return None
    if is_builtin(item):
        return Entry(item, item, group)
    try:
        facts = os.stat(item)
    except OSError as error:
        ledger.add(item, f"cannot open: {error.strerror or error}")
        return None
    where: Any = {"video": item} if kind == "video" else item
    return Entry(item, where, group, size=facts.st_size, modified=facts.st_mtime, kind=kind)
