"""One version of a collection as a search sees it: card, rows, filters. Never changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from crossadapt.errors import UserError, did_you_mean
from crossadapt.search import filter_parser, filters
from crossadapt.search.arrow import pc
from crossadapt.search.cache import CachedRows, cached_rows, matrix
from crossadapt.search.card import FROZEN, Card, missing_columns, vector_column
from crossadapt.search.exact import Block, blocks
from crossadapt.search.filters import Condition
from crossadapt.search.store.protocol import StoredTable


class Snapshot:
    """A version, with its vectors mapped into memory when it is small enough.

    Args:
        card: the card stored with that version.
        table: seen at that version; nobody refreshes it.
        exact_limit: rows up to which the vectors are cached and every search is exact.
    """

    def __init__(self, card: Card, table: StoredTable, exact_limit: int) -> None:
        self.card, self.table = card, table
        self.count = table.count()
        self.small = self.count <= exact_limit
        self._lock = threading.Lock()
        self._cached: CachedRows | None = None

    @property
    def cached(self) -> CachedRows:
        """Its rows in memory; made at the first use."""
        with self._lock:
            if self._cached is None:
                self._cached = cached_rows(self.card, self.table)
            return self._cached

    @property
    def index(self) -> dict[str, Any]:
        """What `gate.maintain` stored of its index; empty where the store now makes another."""
        facts = self.card.facts.get("index", {})
        return facts if facts.get("kind") == self.table.index_kind else {}

    def condition(self, text: str) -> Condition | None:
        """A filter, read with the columns of this collection."""
        return filter_parser.parse(text, self.card.filterable)

    def passing(self, where: Condition | None) -> int:
        """How many rows pass a filter."""
        if where is None:
            return self.count
        if self.small:
            return int(pc.sum(filters.mask(where, self.cached.rows)).as_py() or 0)
        return self.table.count(where)

    def strength(self, view: str | None, strength: float) -> tuple[str, float]:
        """The view to search and the strength that is left to mix.

        Raises:
            UserError: no such view, no number from 0 to 1, or no frozen view to mix with.
        """
        chosen = self.card.view(view).name
        if not 0 <= strength <= 1:
            raise UserError(
                f"strength is {strength}", where="strength", fix="give a number from 0 to 1"
            )
        if strength == 1 or chosen == FROZEN:
            return chosen, 1.0
        if FROZEN not in self.card.view_names:
            raise UserError(
                f"collection {self.card.name!r} has no vectors of the frozen model to mix with",
                where="strength",
                fix="search with strength 1, or index again without --no-frozen",
            )
        return (FROZEN, 1.0) if strength == 0 else (chosen, float(strength))

    def blocks(
        self, view: str, strength: float, where: Condition | None
    ) -> Iterator[tuple[Block, pa.Array]]:
        """The rows that pass and have vectors, in blocks, with their ids (B,)."""
        mixed = strength < 1
        if not self.small:
            yield from self._stored_blocks(view, mixed, where)
            return
        cached = self.cached
        rows, _ = self.numbers(view, mixed, where)
        ids = cached.rows["id"].combine_chunks()
        frozen = cached.vectors[FROZEN] if mixed else None
        for block in blocks(cached.vectors[view], frozen, rows):
            stop = block.start + len(block.vectors)
            chosen = slice(block.start, stop) if rows is None else rows[block.start : stop]
            yield block, ids[chosen] if rows is None else ids.take(pa.array(chosen))

    def numbers(
        self, view: str, mixed: bool, where: Condition | None
    ) -> tuple[np.ndarray | None, int]:
        """The cached rows to look at, int64 in order (None for all), and how many rows pass."""
        rows = filters.passing(where, self.cached.rows)
        count = self.count if rows is None else len(rows)
        for needed in {view, FROZEN} if mixed else {view}:
            present = self.cached.present.get(needed)
            if present is not None:
                rows = present if rows is None else np.intersect1d(rows, present, True)
        return rows, count

    def _stored_blocks(
        self, view: str, mixed: bool, where: Condition | None
    ) -> Iterator[tuple[Block, pa.Array]]:
        columns = [vector_column(view), *([vector_column(FROZEN)] if mixed else [])]
        start = 0
        for batch in self.table.scan(["id", *columns], where):
            for column in columns:
                batch = batch.filter(batch.column(column).is_valid())
            parts = [matrix(batch.column(column), self.card.dim)[0] for column in columns]
            yield Block(start, parts[0], parts[1] if mixed else None), batch.column("id")
            start += batch.num_rows

    def nearest(
        self, view: str, queries: np.ndarray, k: int, where: Condition | None,
        probes: int, partitions: int,
    ) -> list[tuple[list[str], np.ndarray]]:  # fmt: skip
        """Ids and cosines (<= k,) of the nearest that pass, of each query (Q, D), by the index.

        `probes` of the `partitions` it was made with are looked at.
        """
        # Parts that grow are split by LanceDB: all of them can be more than were made.
        looked_at = probes if probes < partitions else max(self.count, 1)
        return self.table.nearest(vector_column(view), queries, k, where, looked_at)

    def vectors(self, ids: Sequence[str], view: str) -> dict[str, np.ndarray]:
        """Id to float32 (D,) of the rows that are known and have a vector."""
        column = vector_column(view)
        found: dict[str, np.ndarray] = {}
        for row in in_order(self.table, ids, ["id", column]).to_pylist():
            if row[column] is not None:
                found[row["id"]] = np.asarray(row[column], np.float32)
        return found


def in_order(table: StoredTable, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """The rows with these ids in the order asked; unknown ids are left out."""
    names = list(dict.fromkeys(["id", *columns]))
    unique = list(dict.fromkeys(ids))
    batches: list[pa.RecordBatch] = []
    for start in range(0, len(unique), 1000):
        where = filters.id_condition(unique[start : start + 1000])
        batches += table.scan(names, where)
    schema = pa.schema([table.schema.field(name) for name in names])
    found = pa.Table.from_batches(batches, schema) if batches else schema.empty_table()
    places = pc.index_in(pa.array(ids, pa.string()), value_set=found["id"]).drop_null()
    return found.take(places).select(list(columns))


def counts(rows: Any, column: str, limit: int) -> list[tuple[Any, int]]:
    """The commonest values of a column with how often each occurs; missing ones not counted."""
    found = rows[column].drop_null().value_counts()
    pairs = zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:limit]


def facets(
    snapshot: Snapshot, columns: Sequence[str] | None, text: str, limit: int
) -> dict[str, list[tuple[Any, int]]]:
    """What `Collection.facets` returns."""
    card, known = snapshot.card, snapshot.card.filterable
    attributes = [name for name, kind in card.attributes.items() if kind != "float"]
    names = list(columns) if columns is not None else ["kind", *attributes]
    for name in missing_columns(names, known):
        raise UserError(f"no column {name!r}", where="facets", fix=did_you_mean(name, known))
    where = snapshot.condition(text)
    stored = {name: known[name].name for name in names}
    if snapshot.small:
        rows = snapshot.cached.rows
        chosen = filters.passing(where, rows)
        rows = rows if chosen is None else rows.select(sorted(set(stored.values()))).take(chosen)
    else:
        schema = pa.schema([card.schema.field(n) for n in sorted(set(stored.values()) or {"id"})])
        rows = pa.Table.from_batches(snapshot.table.scan(schema.names, where), schema)
    return {name: counts(rows, column, limit) for name, column in stored.items()}
