"""What may be written to a collection: types, ids and vectors are checked before the store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from crossadapt.errors import UserError, did_you_mean
from crossadapt.search.arrow import pc
from crossadapt.search.cache import matrix
from crossadapt.search.card import Card

UNIT_TOLERANCE = 1e-3
"""How far a vector's length may be from 1: float16 and bf16 round to about that."""


def checked_rows(rows: pa.Table, card: Card) -> pa.Table:
    """`rows` with the stored types, in the stored order of columns.

    Vectors are scaled to exact unit length; numbers that are not numbers become missing values.

    Raises:
        UserError: an unknown column, a value of a wrong type, an id missing or twice, a vector of
            a wrong length or far from unit length.
    """
    schema = card.schema
    for name in rows.schema.names:
        if name not in schema.names:
            fix = did_you_mean(name, schema.names)
            raise UserError(f"unknown column {name!r}", where=card.name, fix=fix)
    if "id" not in rows.schema.names:
        raise UserError("the rows have no column id", where=card.name, fix="give every row an id")
    arrays, fields = [], []
    for field in schema:
        if field.name in rows.schema.names:
            arrays.append(_column(rows[field.name], field, card))
            fields.append(field)
    result = pa.table(arrays, schema=pa.schema(fields))
    _check_ids(result["id"], card.name)
    return result


def _column(column: pa.ChunkedArray, field: pa.Field, card: Card) -> pa.ChunkedArray:
    if pa.types.is_fixed_size_list(field.type):
        return _vectors(column, field, card)
    try:
        column = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"column {field.name!r} cannot be stored as {field.type}: {error}", where=card.name
        ) from error
    if pa.types.is_floating(field.type):
        # Engines disagree on comparing nan and negative zero.
        column = pc.add(pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column), 0.0)
        column = column.cast(field.type)
    return column


def _vectors(column: pa.ChunkedArray, field: pa.Field, card: Card) -> pa.ChunkedArray:
    """Unit vectors; null stays null."""
    kind: Any = column.type
    if pa.types.is_null(kind):
        return column.cast(field.type)
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists and not pa.types.is_fixed_size_list(kind):
        raise UserError(f"column {field.name!r} holds {kind}, not vectors", where=card.name)
    lengths = {kind.list_size} if not lists else set(
        pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
    )  # fmt: skip
    if wrong := sorted(lengths - {card.dim}):
        raise UserError(
            f"column {field.name!r} has a vector of length {wrong[0]}; the collection's have "
            f"{card.dim}",
            where=card.name,
            fix="embed with the model the collection was made with",
        )
    try:
        vectors, nulls = matrix(column.cast(field.type), card.dim)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"column {field.name!r} holds no vectors of numbers: {error}", where=card.name
        ) from error
    norm = np.linalg.norm(vectors, axis=1)
    norm[nulls] = 1
    far = np.flatnonzero(~(np.abs(norm - 1) <= UNIT_TOLERANCE))
    if len(far):
        raise UserError(
            f"{len(far):,} vectors of column {field.name!r} have no unit length "
            f"(row {far[0]}: {norm[far[0]]:.4g})",
            where=card.name,
            fix="divide each vector by its length; nan and inf cannot be stored",
        )
    # What has unit length already keeps its bits, so that a copy is equal to its original.
    norm[np.abs(norm - 1) < 1e-6] = 1
    flat = pa.array((vectors / norm[:, None]).astype(np.float32).ravel())
    gone = np.zeros(len(vectors), bool)
    gone[nulls] = True
    mask = pa.array(gone) if len(nulls) else None
    return pa.chunked_array([pa.FixedSizeListArray.from_arrays(flat, card.dim, mask=mask)])


def _check_ids(ids: pa.ChunkedArray, where: str) -> None:
    if ids.null_count or pc.any(pc.equal(ids, "")).as_py():
        raise UserError("a row has no id", where=where, fix="give every row an id")
    if len(ids) and pc.count_distinct(ids).as_py() < len(ids):
        counted = ids.value_counts()
        twice = next(row["values"].as_py() for row in counted if row["counts"].as_py() > 1)
        raise UserError(
            f"the id {twice[:80]!r} occurs twice", where=where, fix="give every item once"
        )
