"""The examples of a labelling job: read from a table, found in the collection."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossadapt.errors import UserError, did_you_mean
from crossadapt.search.cache import matrix
from crossadapt.search.card import vector_column
from crossadapt.search.opened import Collection


def read_examples(path: Path) -> list[tuple[str, str]]:
    """(id or item, label) of each line of a CSV, TSV or JSONL file with columns id or item, label.

    Raises:
        UserError: no such file, a missing column, an empty cell, or an item with two labels.
    """
    found: dict[str, str] = {}
    for number, row in enumerate(_rows(path), 1):
        key = next((str(row[c]).strip() for c in ("id", "item") if row.get(c)), "")
        label = str(row.get("label") or "").strip()
        if not key or not label:
            raise UserError(
                "a line without id (or item) and label",
                where=f"{path}, entry {number}; columns: {', '.join(map(str, row))}",
                fix="write a header with id,label or item,label, and fill both in",
            )
        if found.setdefault(key, label) != label:
            raise UserError(
                f"{key} is both {found[key]!r} and {label!r}", where=str(path), fix="keep one"
            )
    if not found:
        raise UserError("no example", where=str(path), fix="write a line for each example")
    return list(found.items())


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the examples: {error}", where=str(path)) from error
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"not JSON: {error}", where=f"{path}:{number}") from error
            if not isinstance(row, dict):
                raise UserError("not a JSON object", where=f"{path}:{number}")
            yield row
        return
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    yield from csv.DictReader(text.splitlines(), delimiter=delimiter)


def example_vectors(
    collection: Collection, given: Sequence[tuple[str, str]], view: str, where: str
) -> tuple[np.ndarray, list[str]]:
    """Stored vectors (R, D) of the examples, and their labels, in the file's order."""
    wanted = dict(given)
    absolute = {str(Path(key).absolute()): key for key in wanted}
    column = vector_column(view)
    found: dict[str, np.ndarray] = {}
    names: list[str] = []
    for batch in collection.scan(["id", "item", column]):
        ids, items = batch.column("id").to_pylist(), batch.column("item").to_pylist()
        names += items[: max(0, 1000 - len(names))]
        rows: dict[str, int] = {}
        for row, (id, item) in enumerate(zip(ids, items, strict=True)):
            for key in (id, item, absolute.get(item or "")):
                if key in wanted:
                    rows[key] = row
        if rows:
            vectors, nulls = matrix(batch.column(column), collection.card.dim)
            missing = set(nulls)
            found |= {key: vectors[row] for key, row in rows.items() if row not in missing}
    lost = [key for key in wanted if key not in found]
    if lost:
        raise UserError(
            f"{len(lost)} examples are not in the collection, the first is {lost[0]}",
            where=where,
            fix=f"{did_you_mean(lost[0], names)} Ids are in the output of search --json.",
        )
    return np.stack([found[key] for key in wanted]).astype(np.float32), list(wanted.values())
