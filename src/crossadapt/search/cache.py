"""Vectors of one version of a collection, as files that a search maps into memory.

Reading a collection's vectors out of the store takes seconds; a mapped file is there at once and
is shared by all processes of the machine. The files are in the cache folder under the
collection's uid and version, so a version is never mixed with another and nothing has to be
invalidated. They can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crossadapt.data.files import cache_dir
from crossadapt.errors import UserError
from crossadapt.files import make_folder, write_failure
from crossadapt.search.card import FILTERABLE, Card, attribute_column, vector_column
from crossadapt.search.pruning import Head, directions, heads
from crossadapt.search.store.protocol import StoredTable

_READY = "ready.json"
_KEEP = 2  # versions of a collection: a reader may still be on the one before


@dataclass(frozen=True)
class CachedRows:
    """The searchable part of every row, in the order of the store."""

    rows: pa.Table
    """id and the columns that filters may name, mapped into memory."""
    vectors: dict[str, np.ndarray]
    """View to float32 (N, D), mapped; zeros where a row has no vector in that view."""
    present: dict[str, np.ndarray]
    """View to the numbers of the rows that have a vector, int64; only views that miss some."""
    heads: dict[str, Head] = field(default_factory=dict)
    """View to what `pruning` reads first; only large views where that is worth it."""

    def __len__(self) -> int:
        return self.rows.num_rows


def folder_of(card: Card, version: int) -> Path:
    """Where the files of a version are."""
    return cache_dir() / "collections" / card.uid / str(version)


def cached_rows(card: Card, table: StoredTable) -> CachedRows:
    """Map the files of the table's version; the first time they are made.

    Raises:
        UserError: the cache folder is full or cannot be written.
    """
    folder = folder_of(card, table.version)
    rows = _open(folder, card)
    if rows is None:
        _build(folder, card, table)
        rows = _open(folder, card)
        if rows is None:
            raise UserError(
                "the cached vectors vanished while they were read", where=str(folder),
                fix="try again; set CROSSADAPT_CACHE to a folder that nobody cleans meanwhile",
            )  # fmt: skip
    return rows


def same_rows(card: Card, old: int, new: int) -> None:
    """Say that version `new` has the rows of `old` (only the card changed): the files stay."""
    source, target = folder_of(card, old), folder_of(card, new)
    if (source / _READY).exists() and not target.exists():
        with contextlib.suppress(OSError):  # they are made again instead
            os.rename(source, target)


def forget(uid: str) -> None:
    """Delete the files of a collection that is no more."""
    if uid:
        shutil.rmtree(cache_dir() / "collections" / uid, ignore_errors=True)


def _open(folder: Path, card: Card) -> CachedRows | None:
    """The files of a folder; None when they are missing, of other views, or of a wrong size."""
    try:
        ready = json.loads((folder / _READY).read_text(encoding="utf-8"))
        with pa.memory_map(str(folder / "rows.arrow")) as file:
            rows = pa.ipc.open_file(file).read_all()
        vectors, present, leading = {}, {}, {}
        for view in card.view_names:
            vectors[view] = _mapped(folder / f"{view}.f32", ready["rows"], card.dim)
            if ready["missing"][view]:
                present[view] = np.load(folder / f"{view}.present.npy")
            if view in ready.get("longest", {}):
                leading[view] = _head(folder, view, ready)
    except (OSError, ValueError, KeyError):
        return None
    return CachedRows(rows, vectors, present, leading) if rows.num_rows == ready["rows"] else None


def _mapped(path: Path, rows: int, dim: int) -> np.ndarray:
    if path.stat().st_size != rows * dim * 4:
        raise ValueError("wrong size")
    if not rows:
        return np.empty((0, dim), np.float32)
    return np.memmap(path, np.float32, "r", shape=(rows, dim))


def _head(folder: Path, view: str, ready: dict[str, Any]) -> Head:
    basis = np.load(folder / f"{view}.basis.npy")
    rows = _mapped(folder / f"{view}.head.f32", ready["rows"], basis.shape[1])
    tails = _mapped(folder / f"{view}.tail.f32", ready["rows"], 1)[:, 0]
    return Head(basis, rows, tails, ready["longest"][view])


def _write_head(aside: Path, view: str, vectors: np.ndarray) -> float | None:
    """Write what `pruning` reads first; the longest length, or None where it is not worth it."""
    basis = directions(vectors)
    if basis is None:
        return None
    np.save(aside / f"{view}.basis.npy", basis)
    lengths: list[float] = []
    with (aside / f"{view}.head.f32").open("wb") as h, (aside / f"{view}.tail.f32").open("wb") as t:
        for head, tails in heads(vectors, basis, lengths.append):
            h.write(head.data)
            t.write(tails.data)
    return max(lengths)


def _build(folder: Path, card: Card, table: StoredTable) -> None:
    """Read everything searchable out of the store, once, into a folder that appears complete."""
    make_folder(folder.parent)
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        aside.mkdir()
        _write(aside, card, table)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was faster; its files are the same
            os.rename(aside, folder)
    except OSError as error:
        raise UserError(
            f"the vectors cannot be cached: {write_failure(error)}",
            where=str(folder),
            fix="free some space, or set CROSSADAPT_CACHE to a folder on another disk",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _prune(folder)


def _write(aside: Path, card: Card, table: StoredTable) -> None:
    names = ["id", *FILTERABLE, *map(attribute_column, card.attributes)]
    views = {view: vector_column(view) for view in card.view_names}
    schema = pa.schema([card.schema.field(name) for name in names])
    count, missing = 0, {view: [] for view in views}
    with contextlib.ExitStack() as files:
        out = {v: files.enter_context((aside / f"{v}.f32").open("wb")) for v in views}
        searchable = []
        for batch in table.scan([*names, *views.values()]):
            searchable.append(batch.select(names).cast(schema))
            for view, column in views.items():
                vectors, nulls = matrix(batch.column(column), card.dim)
                out[view].write(np.ascontiguousarray(vectors).data)
                missing[view].append(nulls + count)
            count += batch.num_rows
    # One chunk: taking single rows out of many small ones is slow.
    rows = pa.Table.from_batches(searchable, schema).combine_chunks()
    with pa.OSFile(str(aside / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        file.write_table(rows)
    gone = {view: np.concatenate([np.empty(0, np.int64), *m]) for view, m in missing.items()}
    for view, numbers in gone.items():
        if len(numbers):
            np.save(aside / f"{view}.present.npy", np.setdiff1d(np.arange(count), numbers))
    longest = {}
    for view in views:
        length = _write_head(aside, view, _mapped(aside / f"{view}.f32", count, card.dim))
        if length is not None:
            longest[view] = length
    missing_counts = {view: len(m) for view, m in gone.items()}
    ready = {"rows": count, "missing": missing_counts, "longest": longest}
    (aside / _READY).write_text(json.dumps(ready), encoding="utf-8")


def matrix(column: pa.Array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, float32 (N, dim), zeros where null, and the numbers of the null rows."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not column.null_count:
        return column.flatten().to_numpy().reshape(-1, dim), np.empty(0, np.int64)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    vectors = np.zeros((len(column), dim), np.float32)
    vectors[valid] = column.drop_null().flatten().to_numpy().reshape(-1, dim)
    return vectors, np.flatnonzero(~valid)


def _prune(folder: Path) -> None:
    """Keep the newest versions of a collection; a mapped file stays readable where it is open."""
    versions = sorted(
        (f for f in folder.parent.iterdir() if f.name.isdigit()), key=lambda f: int(f.name)
    )
    for old in versions[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)
