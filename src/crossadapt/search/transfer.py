"""Collections in and out: Parquet with everything in it, or plain npy matrices with their ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossadapt.errors import UserError
from crossadapt.files import make_folder, replacing, write_file
from crossadapt.search.cache import matrix
from crossadapt.search.card import (
    FORMAT,
    FROZEN,
    Card,
    View,
    attribute_column,
    vector_column,
)
from crossadapt.search.collection import Collection, Collections
from crossadapt.search.rows import checked_rows

CARD_KEY = b"crossadapt.card"
_BATCH = 5000


def export_parquet(collection: Collection, path: Path, *, filter: str = "") -> int:
    """Write all columns and the card to one Parquet file; returns the number of rows.

    The file takes its place only when it is complete.

    Raises:
        UserError: a wrong filter, or the file cannot be written.
    """
    card, count = collection.card, 0
    schema = card.schema.with_metadata({CARD_KEY: card.to_json().encode()})
    batches = collection.scan(schema.names, filter)
    with replacing(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch.cast(card.schema).replace_schema_metadata(schema.metadata))
            count += batch.num_rows
    return count


def export_npy(collection: Collection, folder: Path, *, filter: str = "") -> dict[str, int]:
    """Write ``VIEW.npy``, float32 (N, D), and ``VIEW.ids.txt`` with one id per row.

    Rows without a vector in a view are left out of its two files.

    Returns:
        View to its number of rows.

    Raises:
        UserError: a wrong filter, or the folder cannot be written.
    """
    make_folder(folder)
    dim, counts = collection.card.dim, {}
    for view in collection.card.view_names:
        column = vector_column(view)
        ids: list[str] = []
        with replacing(folder / f"{view}.npy") as aside, aside.open("wb") as file:
            _header(file, 0, dim)
            for batch in collection.scan(["id", column], filter):
                found = batch.filter(batch.column(column).is_valid())
                file.write(np.ascontiguousarray(matrix(found.column(column), dim)[0]).data)
                ids += found.column("id").to_pylist()
            file.seek(0)
            _header(file, len(ids), dim)
        write_file(folder / f"{view}.ids.txt", "".join(f"{name}\n" for name in ids))
        counts[view] = len(ids)
    return counts


def _header(file: Any, rows: int, dim: int) -> None:
    """An npy header; numpy pads it so that the number of rows can grow in place."""
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, shape)


def import_parquet(
    collections: Collections,
    path: Path,
    name: str,
    *,
    backbone: str = "",
    backbone_fingerprint: str = "",
    view: View | None = None,
) -> int:
    """Read a Parquet file into a new collection, or into one that exists (by id).

    A file that `export_parquet` wrote brings its card along. Any other needs a column ``id`` and a
    column ``vector`` (or ``vector_VIEW``); columns named as a collection's own are taken as such,
    other columns of numbers, texts and true/false become attributes. Everything is checked before
    anything is written.

    Args:
        collections: where to.
        path: the file.
        name: of the collection.
        backbone: for a foreign file, what its vectors were made with.
        backbone_fingerprint: of that backbone.
        view: for a foreign file, the view its vectors become; an unbound ``frozen`` view unless
            given, which only a search by vector can use.

    Returns:
        Rows read.

    Raises:
        UserError: it is no Parquet file, has no ids or vectors, ids twice, vectors of different or
            wrong lengths or not of unit length, or other models made the existing collection.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"this is not a readable Parquet file: {error}", where=str(path),
            fix="export one with: crossadapt collection export NAME FILE.parquet",
        ) from error  # fmt: skip
    with file:
        view = view or View(FROZEN)
        card = _card_of(file, path, name, backbone, backbone_fingerprint, view)
        exists = name in collections.names()
        if exists:
            known = collections.open(name).card
            _compatible(known, card, path)
            card = known
        _check(file, path, card, view)
        target = collections.open(name, write=True) if exists else collections.create(card)
        count = 0
        with target:
            try:
                for rows in _rows(file, path, card, view):
                    target.upsert(rows)
                    count += rows.num_rows
            except BaseException:
                if not exists:
                    target.close()
                    collections.drop(name)  # half of a new collection is of no use
                raise
    return count


def _card_of(
    file: pq.ParquetFile, path: Path, name: str, backbone: str, fingerprint: str, view: View
) -> Card:
    schema = file.schema_arrow
    stored = (schema.metadata or {}).get(CARD_KEY)
    if stored is not None:
        card = Card.from_json(stored.decode(), where=str(path))
        facts = {key: value for key, value in card.facts.items() if key != "index"}
        return card.changed(name=name, facts=facts, format=FORMAT, created="")
    source = _vector_source(schema, path, view)
    kind: Any = schema.field(source).type
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(file, source)
    draft = Card(name, dim, backbone, fingerprint, (view,))
    known = {source, *draft.schema.names}
    kinds = {f.name: _attribute_type(f.type) for f in schema if f.name not in known}
    attributes = {n.removeprefix("attr_"): kind for n, kind in kinds.items() if kind is not None}
    return draft.changed(attributes=attributes)


def _vector_source(schema: pa.Schema, path: Path, view: View) -> str:
    for name in (vector_column(view.name), "vector"):
        if name in schema.names:
            return name
    raise UserError(
        "the file has no column of vectors", where=str(path),
        fix=f"name it vector; the columns are: {', '.join(schema.names)}",
    )  # fmt: skip


def _first_length(file: pq.ParquetFile, column: str) -> int:
    for batch in file.iter_batches(1, columns=[column]):
        if (first := batch.column(0)[0].as_py()) and isinstance(first, list):
            return len(first)
        break
    raise UserError(f"the first row has no vector in column {column!r}", where="import")


def _attribute_type(kind: pa.DataType) -> str | None:
    """The type of attribute a column of a foreign file becomes; None when it becomes none."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int"
    if pa.types.is_floating(kind):
        return "float"
    return "string" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _compatible(known: Card, given: Card, path: Path) -> None:
    """The vectors of the file must come from the models of the collection."""
    if known.dim != given.dim:
        raise UserError(
            f"the file's vectors have length {given.dim}, the collection's {known.dim}",
            where=str(path), fix="give another name to import it as a collection of its own",
        )  # fmt: skip
    for view in given.views:
        mine = next((v for v in known.views if v.name == view.name), None)
        if mine is None or mine.fingerprint != view.fingerprint:
            raise UserError(
                f"the file's vectors {view.name!r} were made by another model than the "
                f"collection's",
                where=str(path), fix="give another name to import it as a collection of its own",
            )  # fmt: skip


def _rows(file: pq.ParquetFile, path: Path, card: Card, view: View) -> Iterator[pa.Table]:
    """The file's rows, checked, with the names of stored columns."""
    names = set(card.schema.names)
    for batch in file.iter_batches(_BATCH):
        columns = {}
        for name in batch.schema.names:
            stored = vector_column(view.name) if name == "vector" else name
            if stored not in names and name in card.attributes:
                stored = attribute_column(name)
            if stored in names and stored not in columns:
                columns[stored] = batch.column(name)
        try:
            yield checked_rows(pa.table(columns), card)
        except UserError as error:
            raise UserError(error.what, where=str(path), fix=error.fix) from error


def _check(file: pq.ParquetFile, path: Path, card: Card, view: View) -> None:
    """Everything that can be wrong with the file, before anything is written."""
    seen: set[str] = set()
    for rows in _rows(file, path, card, view):
        ids = rows["id"].to_pylist()
        twice = seen.intersection(ids)
        if twice:
            raise UserError(
                f"the id {min(twice)[:80]!r} occurs twice", where=str(path),
                fix="give every item once",
            )  # fmt: skip
        seen.update(ids)
        if not any(name.startswith("vector_") for name in rows.schema.names):
            raise UserError("the file has no vectors", where=str(path))
