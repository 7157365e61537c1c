"""Pictures inside other files: WebDataset archives, and Parquet files with a column of bytes."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crossadapt.data.ledger import Ledger
from crossadapt.data.readers.columns import ALIASES, attributes_of, resolve, texts_of
from crossadapt.data.readers.registry import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from crossadapt.data.splits import canonical
from crossadapt.errors import UserError
from crossadapt.search.sources import SPLIT, Entry

_TEXT_MEMBERS = (".txt", ".json")
_LONGEST_TEXT = 2**20
"""Largest text or JSON member, in bytes, that is read."""


def tar_entries(path: Path, ledger: Ledger) -> Iterator[Entry]:
    """Pictures of a WebDataset archive with their texts and attributes.

    Members that share a name up to the first dot of its last part, and stand one after another,
    are one sample: ``0001.jpg`` with ``0001.txt`` (a caption a line) and ``0001.json`` (a caption
    under one of the usual names; other plain values are attributes). Only headers and texts are
    read here, the pictures are left where they are.
    """
    modified = os.stat(path).st_mtime
    key, sample = "", {}
    for name, suffix, value in _members(path, ledger):
        if name != key:
            yield from _sample(path, modified, key, sample, ledger)
            key, sample = name, {}
        sample[suffix] = value
    yield from _sample(path, modified, key, sample, ledger)


def _members(path: Path, ledger: Ledger) -> Iterator[tuple[str, str, Any]]:
    """(sample, suffix, value): the bytes of texts, [offset, size] of pictures."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                folder, _, base = member.name.rpartition("/")
                stem, dot, rest = base.partition(".")
                if not member.isfile() or not stem or not dot:
                    continue
                name, suffix = f"{folder}/{stem}" if folder else stem, f".{rest.lower()}"
                if suffix in IMAGE_SUFFIXES:
                    yield name, suffix, (member.name, member.offset_data, member.size)
                elif suffix in VIDEO_SUFFIXES:
                    ledger.add(f"{path}#{member.name}", "video in an archive: unpack it first")
                elif suffix in _TEXT_MEMBERS and member.size <= _LONGEST_TEXT:
                    content = archive.extractfile(member)
                    yield name, suffix, content.read() if content is not None else b""
    except (tarfile.TarError, OSError) as error:
        ledger.add(path, f"damaged archive: {error}; what comes before was read")


def _sample(
    path: Path, modified: float, key: str, sample: Mapping[str, Any], ledger: Ledger
) -> Iterator[Entry]:
    pictures = [value for suffix, value in sample.items() if suffix in IMAGE_SUFFIXES]
    if not pictures:
        return
    texts: list[str] = []
    values: dict[str, Any] = {}
    try:
        texts += sample.get(".txt", b"").decode("utf-8-sig").splitlines()
        record = json.loads(sample[".json"]) if ".json" in sample else {}
        if isinstance(record, dict):
            found = resolve(list(record), {}, where=f"{path}#{key}.json", needed=())
            texts += [t for t in texts_of(record.get(found.get("text", ""))) if t]
            values = attributes_of(record, found)
            if split := record.get(found.get("split", "")):
                values[SPLIT] = canonical(str(split))
    except ValueError as error:
        ledger.add(f"{path}#{key}", f"unreadable text: {error}")
    unique = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    for name, offset, size in pictures:
        yield Entry(
            item=f"{path}#{name}",
            where=[str(path), offset, size],
            group=key,
            texts=unique,
            attributes=dict(values),
            size=size,
            modified=modified,
        )


def bytes_column(path: Path, columns: Mapping[str, str]) -> str:
    """The column of a Parquet file that holds encoded pictures, or an empty string.

    That is a column of bytes, or of ``{"bytes", "path"}`` as the ``datasets`` library writes it.

    Raises:
        UserError: the file is damaged, or several columns hold bytes and none is named.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"the file cannot be read: {error}", where=str(path), fix="write it again"
        ) from error
    found = [f.name for f in schema if _holds_bytes(f.type)]
    wanted = columns.get("item")
    if wanted is not None:
        return wanted if wanted in found else ""
    named = [name for name in ALIASES["item"] if name in found]
    # A column of paths goes before an unknown column of bytes (a hash, an embedding).
    if named or any(name in schema.names for name in ALIASES["item"]):
        return named[0] if named else ""
    if len(found) > 1:
        raise UserError(
            f"several columns hold bytes: {', '.join(found)}",
            where=str(path),
            fix=f"say which are the pictures: --columns item {found[0]}",
        )
    return found[0] if found else ""


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def parquet_entries(
    path: Path, column: str, columns: Mapping[str, str], ledger: Ledger
) -> Iterator[Entry]:
    """Rows of a Parquet file whose pictures are in `column`; their bytes are not read here.

    Raises:
        UserError: a named column does not exist.
    """
    file = pq.ParquetFile(path)
    names = [name for name in file.schema_arrow.names if name != column]
    wanted = {ours: name for ours, name in columns.items() if ours != "item"}
    found = resolve(names, wanted, where=str(path), given=("item",), needed=())
    modified = os.stat(path).st_mtime
    number = -1
    try:
        # Without any other column the batches would have no rows to count.
        batches = file.iter_batches(1024, columns=names) if names else ()
        for batch in batches:
            for record in batch.to_pylist():
                number += 1
                yield _parquet_entry(path, column, number, record, found, modified)
    except (pa.ArrowInvalid, OSError) as error:
        ledger.add(path, f"damaged file: {error}; what comes before was read")
    for row in range(number + 1, file.metadata.num_rows if not names else 0):
        yield _parquet_entry(path, column, row, {}, found, modified)


def _parquet_entry(
    path: Path, column: str, row: int, record: dict, found: Mapping[str, str], modified: float
) -> Entry:
    item = f"{path}#{row}"
    texts = [str(text).strip() for text in texts_of(record.get(found.get("text", ""))) if text]
    values = attributes_of(record, found)
    if split := record.get(found.get("split", "")):
        values[SPLIT] = canonical(str(split))
    group = record.get(found.get("group", ""))
    return Entry(
        item=item,
        where=item,
        group=f"{path.name}#{row}" if group in (None, "") else str(group),
        texts=tuple(dict.fromkeys(text for text in texts if text)),
        attributes=values,
        modified=modified,
        row=row,
        column=column,
    )


class ParquetBytes:
    """Reads pictures out of Parquet files, row by row, a small batch in memory at a time."""

    def __init__(self) -> None:
        self._path = ""
        self._next = 0
        self._cells: Iterator[Any] = iter(())
        self._starts: list[int] = []
        self._file: pq.ParquetFile | None = None

    def read(self, entry: Entry) -> bytes:
        """The encoded picture of an entry, empty if its cell is; cheap when rows ascend.

        Raises:
            OSError, pa.ArrowInvalid: the file cannot be read (any more).
        """
        path = entry.item.rpartition("#")[0]
        if path != self._path:
            self._file, self._path = pq.ParquetFile(path), path
            sizes = [
                self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)
            ]
            self._starts = [sum(sizes[:g]) for g in range(len(sizes))]
            self._next = -1
        group = max(g for g, start in enumerate(self._starts) if start <= entry.row)
        if not self._starts[group] <= self._next <= entry.row:
            self._next = self._starts[group]
            self._cells = self._rows(group, entry.column)
        cell = None
        while self._next <= entry.row:
            cell = next(self._cells, None)
            self._next += 1
        return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""

    def _rows(self, group: int, column: str) -> Iterator[Any]:
        if self._file is None:
            return
        groups = list(range(group, len(self._starts)))
        for batch in self._file.iter_batches(32, row_groups=groups, columns=[column]):
            for cell in batch.column(0):
                yield cell.as_py()
