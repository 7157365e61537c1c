"""Tables: ``metadata.csv``, ``.tsv``, ``.jsonl``, ``.json`` lists and ``.parquet``."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crossadapt.data.files import keep_bytes
from crossadapt.data.manifest import is_builtin
from crossadapt.data.readers.columns import attributes_of, resolve, texts_of
from crossadapt.data.readers.registry import IMAGE_SUFFIXES, Request, register
from crossadapt.data.readers.sidecar import folder_split, walk
from crossadapt.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".json")
_METADATA = tuple(f"metadata{suffix}" for suffix in SUFFIXES[:-1])


def _tables_in(folder: Path) -> list[Path]:
    """Metadata files of a folder, or of its direct subfolders (``train/metadata.csv``, …)."""
    for pattern in ("", "*/"):
        found = [file for name in _METADATA for file in sorted(folder.glob(pattern + name))]
        if found:
            return found
    return []


def _matches(source: str) -> bool:
    path = Path(source)
    if path.is_dir():
        return bool(_tables_in(path))
    return path.suffix.lower() in SUFFIXES and path.is_file()


@register("table", _matches, order=5)
def read(request: Request) -> None:
    """A table with picture names and texts, or a folder with ``metadata.csv/.jsonl/.parquet``."""
    path = Path(request.source).absolute()
    if not path.exists():
        raise UserError("no such file or folder", where=request.source, fix="check the path")
    files = _tables_in(path) if path.is_dir() else [path]
    if not files:
        raise UserError(
            "the folder holds no metadata file", where=str(path), fix=f"write {_METADATA[0]}"
        )
    used: set[str] = set()
    for file in files:
        split = folder_split(file.relative_to(path)) if path.is_dir() else ""
        used |= _read_table(file, request, split, base=path if path.is_dir() else file.parent)
    if path.is_dir():
        for picture in walk(path):
            if picture.suffix.lower() in IMAGE_SUFFIXES and str(picture) not in used:
                request.ledger.add(picture, "image without caption: no row names it")


def _read_table(file: Path, request: Request, split: str, base: Path) -> set[str]:
    records = _records(file, request)
    first = next(records, None)
    if first is None:
        return set()
    used: set[str] = set()
    columns: dict[str, str] = {}
    present: list[str] = []
    root = request.root or file.parent
    needed = ("item", "text") if request.texts_needed else ("item",)
    for number, record in _chain(first, records):
        # JSON lines may bring new keys; the columns are resolved again when they do.
        if not columns or any(name not in present for name in record):
            present += [name for name in record if name not in present]
            columns = resolve(present, request.columns, where=str(file), needed=needed)
        cell = record.get(columns["item"])
        item = _item(cell, root)
        if item is None:
            request.ledger.add(f"{file}:{number}", f"no picture: the {columns['item']} is {cell!r}")
            continue
        used.add(item)
        group = record.get(columns.get("group", ""))
        request.add(
            item,
            texts_of(record.get(columns.get("text", ""))),
            group=_group(item, base) if group in (None, "") else str(group),
            split=str(record.get(columns.get("split", "")) or split),
            kind=str(record.get(columns.get("kind", "")) or ""),
            attributes=attributes_of(record, columns),
        )
    return used


def _chain(
    first: tuple[int, dict[str, Any]], rest: Iterator[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    yield first
    yield from rest


def _item(cell: Any, root: Path) -> str | None:
    """Absolute path of a cell: a name, or bytes as they are or in the ``datasets`` layout."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return str(keep_bytes(cell, "tables"))
    if not isinstance(cell, str) or not cell.strip():
        return None
    name = cell.strip()
    if is_builtin(name) or re.match(r"https?://", name):
        return name
    return str(root / name)


def _group(item: str, base: Path) -> str:
    # Relative, so that the split by hash does not depend on where the data lies.
    path = Path(item)
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name


def _records(file: Path, request: Request) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line or row numbers and records; what cannot be parsed goes to the ledger."""
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet(file)
        elif suffix == ".json":
            yield from _json_list(file, request)
        elif suffix == ".jsonl":
            yield from _json_lines(file, request)
        else:
            yield from _delimited(file, request)
    except UnicodeDecodeError as error:
        raise UserError(
            f"the file is not UTF-8: {error.reason}", where=str(file), fix="save it as UTF-8"
        ) from error
    except (pa.ArrowInvalid, csv.Error, OSError) as error:
        raise UserError(
            f"the file cannot be read: {error}", where=str(file), fix="write it again"
        ) from error


def _parquet(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
        for record in batch.to_pylist():
            number += 1
            yield number, record


def _json_lines(file: Path, request: Request) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                request.ledger.add(f"{file}:{number}", f"broken line: not JSON, {error}")
                continue
            if isinstance(record, dict):
                yield number, record
            else:
                request.ledger.add(f"{file}:{number}", "broken line: not a JSON object")


def _json_list(file: Path, request: Request) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(file), fix="correct it") from error
    if not isinstance(content, list):
        raise UserError(
            "expected a list of objects", where=str(file), fix='[{"image": …, "caption": …}, …]'
        )
    for number, record in enumerate(content, 1):
        if isinstance(record, dict):
            yield number, record
        else:
            request.ledger.add(f"{file}:{number}", "broken entry: not a JSON object")


def _delimited(file: Path, request: Request) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
        lines.seek(0)
        delimiter = max("\t;,", key=header.count)
        reader = csv.DictReader(lines, delimiter=delimiter)
        for record in reader:
            if None in record:
                request.ledger.add(
                    f"{file}:{reader.line_num}",
                    "broken line: more cells than columns, quote texts that hold a "
                    + ("tab" if delimiter == "\t" else repr(delimiter)),
                )
                continue
            yield reader.line_num, dict(record)
