"""One opened collection: read it from any thread, write it with the lock in hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crossadapt.errors import UserError, did_you_mean
from crossadapt.search import cache, filters, gate, index_plan
from crossadapt.search.binding import require
from crossadapt.search.card import Card, missing_columns
from crossadapt.search.exact import scores as block_scores
from crossadapt.search.rows import checked_rows
from crossadapt.search.snapshot import Snapshot, facets, in_order
from crossadapt.search.store.protocol import StoredTable

if TYPE_CHECKING:
    from crossadapt.search.collection import Collections

KEEP_SECONDS = 3600.0
"""Age at which `maintain` forgets old versions; a reader may be on one until it refreshes."""


class Collection:
    """One collection. Reading is safe from several threads; a context manager frees the lock."""

    def __init__(
        self,
        home: Collections,
        card: Card,
        table: StoredTable,
        lock: contextlib.ExitStack | None,
    ) -> None:
        self._home, self._lock = home, lock
        self._writer = table if lock is not None else None
        self._snapshot: Snapshot | None = None
        if lock is None:
            self._snapshot = Snapshot(card, table, home.exact_limit)
        self._card = card

    # --- what it is -------------------------------------------------------------------------

    @property
    def card(self) -> Card:
        """Everything about it that is not a row."""
        return self._card

    @property
    def version(self) -> int:
        """The version seen; every write makes a higher one."""
        return self._now().table.version

    def __len__(self) -> int:
        return self._now().count

    def refresh(self) -> bool:
        """See what other processes wrote; whether there was anything.

        A search that is running goes on with the version it began with.
        """
        before = self._now()
        fresh = self._open()
        if (fresh.card.uid, fresh.table.version) == (before.card.uid, before.table.version):
            return False
        self._snapshot, self._card = fresh, fresh.card
        return True

    def require(self, fingerprints: Mapping[str, str]) -> None:
        """Check that the vectors were made by these models.

        Args:
            fingerprints: view to the fingerprint of the model that will make the queries.

        Raises:
            UserError: a view is missing or has another fingerprint; the command that embeds again
                is named.
        """
        require(self.card, self._home.uri, fingerprints)

    # --- reading ----------------------------------------------------------------------------

    def search(
        self,
        vector: np.ndarray,
        k: int = 10,
        *,
        view: str | None = None,
        strength: float = 1.0,
        filter: str = "",
        exact: bool | None = None,
    ) -> Any:
        """The nearest items to one vector (D,) or to several (Q, D).

        Args:
            vector: float; scaled to unit length here.
            k: how many; fewer are found when fewer pass.
            view: the embeddings to search; the card's default view unless given.
            strength: 1 the adapter, 0 the frozen model, between: both mixed.
            filter: see `crossadapt.search.filters`.
            exact: True reads every row; False allows the index in any case; None decides.

        Returns:
            `Hits`, or a list of them for several vectors.

        Raises:
            UserError: a wrong k, view, strength, filter, or a vector of another length.
        """
        snapshot = self._now()
        queries = index_plan.checked_queries(vector, snapshot.card)
        found = index_plan.search(
            snapshot, queries, k, view=view, strength=strength, text=filter, exact=exact
        )
        return found if np.ndim(vector) == 2 else found[0]

    def scores(
        self, vectors: np.ndarray, *, view: str | None = None, strength: float = 1.0,
        filter: str = "",
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Cosines of vectors (Q, D) with every row that passes, in blocks float32 (Q, B)."""
        snapshot = self._now()
        queries = index_plan.checked_queries(np.atleast_2d(vectors), snapshot.card)
        chosen, strength = snapshot.strength(view, strength)
        where = snapshot.condition(filter)
        for block, _ in snapshot.blocks(chosen, strength, where):
            yield block_scores(queries, block, strength)

    def rank_of(
        self, vector: np.ndarray, ids: Sequence[str], *, view: str | None = None,
        strength: float = 1.0, filter: str = "",
    ) -> dict[str, int]:  # fmt: skip
        """The exact rank (from 1) of given items among all that pass; others are left out."""
        snapshot = self._now()
        query = index_plan.checked_queries(np.atleast_2d(vector), snapshot.card)
        return index_plan.ranks(snapshot, query, ids, view=view, strength=strength, text=filter)

    def scan(self, columns: Sequence[str], filter: str = "") -> Iterator[pa.RecordBatch]:
        """The rows that pass, in batches of the stored columns."""
        snapshot = self._now()
        self._check_columns(columns)
        return snapshot.table.scan(columns, snapshot.condition(filter))

    def get(self, ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Rows by id in the order asked; unknown ids are left out.

        Args:
            ids: ids of items.
            columns: stored columns; all but vectors and small pictures unless given.
        """
        names = columns or [
            name
            for name in self.card.schema.names
            if name not in ("thumbnail", "stills") and not name.startswith(("vector_", "frames_"))
        ]
        self._check_columns(names)
        return in_order(self._now().table, ids, names)

    def facets(
        self, columns: Sequence[str] | None = None, filter: str = "", limit: int = 50
    ) -> dict[str, list[tuple[Any, int]]]:
        """The commonest values of columns among the rows that pass, with counts.

        Args:
            columns: names as in a filter; kind and all attributes but numbers with a fraction
                unless given.
            filter: only rows that pass.
            limit: values per column.
        """
        return facets(self._now(), columns, filter, limit)

    def stats(self) -> dict[str, Any]:
        """Rows, views, bytes, version, index with its measured recall, and the card's facts."""
        return gate.stats(self._now(), self._home.uri, self._home.exact_limit)

    # --- writing ----------------------------------------------------------------------------

    def update_card(self, **changes: Any) -> None:
        """Change the card; columns follow its views and attributes.

        A new view or attribute is empty in every row until `upsert` fills it; one that is left out
        of the new card is deleted with its values.
        """
        table = self._writable()
        old, card = self._card, self._card.changed(**changes)
        if card.name != old.name or card.dim != old.dim or card.uid != old.uid:
            raise UserError("name, dim and uid of a collection cannot change", where="update_card")
        before = table.version
        wanted, have = card.schema, set(table.schema.names)
        new = [field for field in wanted if field.name not in have]
        kept = {field.name: field.type for field in old.schema}
        for field in wanted:
            if field.name in kept and kept[field.name] != field.type:
                raise UserError(
                    f"column {field.name!r} cannot become {field.type}", where="update_card",
                    fix="give the attribute another name",
                )  # fmt: skip
        if new:
            table.add_columns(new)
        table.write_card(card.to_json())
        if gone := [name for name in have if name not in set(wanted.names)]:
            table.drop_columns(gone)
        elif not new:
            cache.same_rows(card, before, table.version)
        self._card, self._snapshot = card, None

    def upsert(self, rows: pa.Table) -> None:
        """Insert rows, or replace those whose id is known; all of them or none.

        Columns that are left out keep their value, or are null in a new row.

        Args:
            rows: ``id`` and any of the card's columns; vectors of unit length.

        Raises:
            UserError: unknown columns, ids missing or twice, vectors of a wrong length or not of
                unit length, or the disk is full; the collection is as before.
        """
        table = self._writable()
        rows = checked_rows(rows, self._card)
        if rows.num_rows:
            table.upsert(rows)
            self._snapshot = None

    def delete(self, ids: Sequence[str]) -> int:
        """Delete rows by id; returns how many there were."""
        table, count = self._writable(), 0
        unique = list(dict.fromkeys(ids))
        for start in range(0, len(unique), 5000):
            count += table.delete(filters.id_condition(unique[start : start + 5000]))
        self._snapshot = None
        return count

    def maintain(
        self, *, recall: float = 0.95, keep_seconds: float = KEEP_SECONDS
    ) -> dict[str, Any]:
        """Merge files, build or extend the index, measure its recall, forget old versions.

        Args:
            recall: what the index has to find of the exact ten nearest, on average.
            keep_seconds: versions older than this are forgotten; readers that still use one have
                to `refresh` before.

        Returns:
            What was done, and the `stats` after it.
        """
        table = self._writable()
        facts = gate.maintain(table, self._card, self._home.exact_limit, recall, keep_seconds)
        self._snapshot = None
        self.update_card(facts=self._card.facts | {"index": facts})
        return {"index": facts, "stats": self.stats()}

    # --- inside -----------------------------------------------------------------------------

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the writer's lock; reading goes on to work."""
        lock, self._lock, self._writer = self._lock, None, None
        if lock is not None:
            lock.close()

    def _now(self) -> Snapshot:
        snapshot = self._snapshot
        if snapshot is None:
            snapshot = self._snapshot = self._open()
        return snapshot

    def _open(self) -> Snapshot:
        """A handle of its own, so that no write moves the version a search is reading."""
        table = self._home.store.open(self._card.name)
        card = Card.from_json(table.read_card(), where=f"{self._home.uri} {self._card.name}")
        return Snapshot(card, table, self._home.exact_limit)

    def _writable(self) -> StoredTable:
        if self._writer is None:
            what = f"collection {self._card.name!r} is open for reading only"
            raise UserError(what, where="Collection", fix="open it with write=True")
        return self._writer

    def _check_columns(self, names: Sequence[str]) -> None:
        schema = self._now().card.schema
        for name in missing_columns(names, schema):
            fix = did_you_mean(name, schema.names)
            raise UserError(f"no column {name!r}", where=self._card.name, fix=fix)
