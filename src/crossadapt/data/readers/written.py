"""Manifests this project wrote itself."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crossadapt.data.manifest import CORE_COLUMNS, PARQUET_MARK, is_builtin
from crossadapt.data.readers.registry import Request, register
from crossadapt.errors import UserError


def _matches(source: str) -> bool:
    path = _file(source)
    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return False  # the table reader says what is wrong with it
    return PARQUET_MARK in metadata


def _file(source: str) -> Path:
    path = Path(source)
    return path / "manifest.parquet" if path.is_dir() else path


@register("manifest", _matches, order=3)
def read(request: Request) -> None:
    """A Parquet file written by ``Manifest.write``, or a folder with it as manifest.parquet."""
    path = _file(request.source).absolute()
    if not _matches(str(path)):
        raise UserError(
            "not a manifest written by crossadapt", where=str(path), fix="use reader='auto'"
        )
    table = pq.read_table(path)
    notes = (table.schema.metadata or {}).get(b"crossadapt.notes", b"").decode()
    request.notes.extend(note for note in notes.splitlines() if note)
    for row in table.to_pylist():
        core = {name: row.pop(name) for name in CORE_COLUMNS}
        item = core["item"]
        request.add(
            item if is_builtin(item) else path.parent / item,
            [core["text"]],
            group=core["group"],
            split=core["split"],
            kind=core["kind"],
            attributes=row,
        )
