"""LanceDB as an engine: a local folder or an object store, the same files in both.

Each collection is one Lance table. Every write is one commit of a new manifest, so a reader sees a
whole version or the one before, and a crash leaves files that belong to no version. The card is
metadata of the ``id`` column: it changes in the same history as the rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from crossadapt.errors import UserError, did_you_mean
from crossadapt.files import make_folder, unwritten, write_failure
from crossadapt.search.filters import Condition
from crossadapt.search.store.lance_queries import Connection, Queries
from crossadapt.search.store.lock import file_lock, lease
from crossadapt.search.store.protocol import IndexState
from crossadapt.search.store.sql import to_sql

_CARD = "crossadapt.card"
_HIDDEN = "_"
"""First character of tables that are no collections (the leases)."""

ResultT = TypeVar("ResultT")


class LanceTable:
    """One Lance table as a `StoredTable`."""

    def __init__(self, table: Any, where: str, connection: Connection) -> None:
        self._table, self._where, self._connection = table, where, connection
        self._queries: Queries | None = None

    @property
    def index_kind(self) -> str:
        """Parts of whole vectors: answers need no second comparison, which costs more than it."""
        return "IVF_FLAT"

    @property
    def version(self) -> int:
        """Lance's version number."""
        return self._table.version

    @property
    def schema(self) -> pa.Schema:
        """Columns at this version."""
        return self._table.schema

    def refresh(self) -> bool:
        """See the newest version."""
        before = self.version
        self._read(self._table.checkout_latest)
        self._queries = None
        return self.version != before

    def read_card(self) -> str:
        """The card's JSON; empty when the table is no collection of ours."""
        schema = self.schema
        if "id" not in schema.names:
            return ""
        return (schema.field("id").metadata or {}).get(_CARD.encode(), b"").decode()

    def write_card(self, text: str) -> None:
        """Store the card's JSON."""
        change = {"path": "id", "metadata": {_CARD: text}}
        self._write(lambda: self._table.update_field_metadata(change))

    def count(self, where: Condition | None = None) -> int:
        """Rows that pass."""
        return self._read(lambda: self._table.count_rows(to_sql(where) if where else None))

    def scan(
        self, columns: Sequence[str], where: Condition | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows that pass, in batches, in the order they are stored."""
        query = self._table.search(None).select(list(columns))
        if where is not None:
            query = query.where(to_sql(where))
        reader = self._read(lambda: query.to_batches())
        while (batch := self._read(lambda: next(reader, None))) is not None:
            yield batch

    def upsert(self, rows: pa.Table) -> None:
        """Insert or update by id, in one commit."""
        merge = self._table.merge_insert("id")
        merge = merge.when_matched_update_all().when_not_matched_insert_all()
        # Vectors were checked before; a row without one keeps its null.
        self._write(lambda: merge.execute(rows, on_bad_vectors="null"))

    def delete(self, where: Condition) -> int:
        """Delete the rows that pass, in one commit."""
        return self._write(lambda: self._table.delete(to_sql(where))).num_deleted_rows

    def add_columns(self, fields: Sequence[pa.Field]) -> None:
        """New columns, null in every row."""
        self._write(lambda: self._table.add_columns(list(fields)))

    def drop_columns(self, names: Sequence[str]) -> None:
        """Remove columns and their indexes."""
        self._write(lambda: self._table.drop_columns(list(names)))

    def nearest(
        self,
        column: str,
        vectors: np.ndarray,
        k: int,
        where: Condition | None = None,
        probes: int | None = None,
    ) -> list[tuple[list[str], np.ndarray]]:
        """Nearest rows through the index, and without it for the rows it does not cover."""

        def ask() -> list[pa.Table]:
            queries = self._queries
            if queries is None:
                name = self._table.name
                queries = self._queries = self._connection.table(name, self._table.version)
            return queries.nearest(column, vectors, k, to_sql(where) if where else None, probes)

        return [
            (found["id"].to_pylist(), 1 - found["_distance"].to_numpy().astype(np.float32))
            for found in self._read(ask)
        ]

    def index(self, column: str) -> IndexState | None:
        """The column's index, if it has one."""
        for config in self._read(self._table.list_indices):
            # Names with other characters than letters come back in backticks.
            columns = [name.strip("`") for name in config.columns]
            if columns == [column] and config.index_type.startswith("Ivf"):
                stats = self._read(lambda name=config.name: self._table.index_stats(name))
                return IndexState(
                    stats.index_type, stats.num_indexed_rows, stats.num_unindexed_rows
                )
        return None

    def build_index(self, column: str, partitions: int) -> None:
        """IVF over the vectors themselves, inner product."""
        from lancedb.index import BTree, IvfFlat

        # As a size, not as a number: LanceDB keeps the size with the index. Without one, `optimize`
        # joins all parts of less than 1,024 rows into worse ones; for one recall, a thousand parts
        # of a million rows needed 9 probes before it and 108 after.
        rows = max(1, -(-self.count() // partitions))  # rounded up: never more parts than asked for
        config = IvfFlat(distance_type="dot", target_partition_size=rows)
        self._write(lambda: self._table.create_index(column, config=config, replace=True))
        if not any(c.columns == ["id"] for c in self._read(self._table.list_indices)):
            self._write(lambda: self._table.create_index("id", config=BTree()))

    def compact(self, keep_seconds: float) -> None:
        """Lance's ``optimize``: merge files, extend the indexes, prune."""
        # Zero would make Lance warn of readers on older versions; who asks for it knows.
        keep = timedelta(seconds=max(keep_seconds, 0.001))
        self._write(lambda: self._table.optimize(cleanup_older_than=keep))

    def size(self) -> int:
        """Bytes of the rows and of the indexes."""
        return int(self._read(self._table.stats)["total_bytes"])

    def _read(self, action: Callable[[], ResultT]) -> ResultT:
        return _translated(action, self._where, writing=False)

    def _write(self, action: Callable[[], ResultT]) -> ResultT:
        try:
            return _translated(action, self._where, writing=True)
        finally:
            self._queries = None  # they see the version before


class LanceStore:
    """A folder or an object store of Lance tables as a `CollectionStore`."""

    def __init__(self, uri: str | Path, storage_options: Mapping[str, str] | None = None) -> None:
        """Nothing is read or made before a method asks for it.

        Args:
            uri: a folder, or ``s3://bucket/path``, ``gs://...``, ``az://...``.
            storage_options: for object stores, as in LanceDB, beside its environment variables.
        """
        self._remote = "://" in str(uri)
        if str(uri).startswith("db://"):
            raise UserError(
                "LanceDB's cloud service is not supported", where=str(uri),
                fix="give a folder or an object store such as s3://bucket/path",
            )  # fmt: skip
        self._uri = str(uri).rstrip("/") if self._remote else str(Path(uri).expanduser().absolute())
        self._options = dict(storage_options or {})
        self._connection: Any = None
        self._for_queries = Connection(self._uri, self._options)

    @property
    def uri(self) -> str:
        """The folder's absolute path, or the object store's address."""
        return self._uri

    @property
    def _db(self) -> Any:
        if self._connection is None:
            import lancedb

            if not self._remote:
                make_folder(Path(self._uri))
            self._connection = _translated(
                lambda: lancedb.connect(self._uri, storage_options=self._options or None),
                self._uri,
                writing=False,
            )
        return self._connection

    def names(self) -> list[str]:
        """All tables but the leases."""
        if not self._remote and not Path(self._uri).is_dir():
            return []
        found: list[str] = []
        token = None
        while True:
            page = _translated(
                lambda token=token: self._db.list_tables(page_token=token), self._uri, writing=False
            )
            found += page.tables
            token = page.page_token
            if not token:
                return sorted(name for name in found if not name.startswith(_HIDDEN))

    def create(self, name: str, schema: pa.Schema, card: str) -> LanceTable:
        """A new table with the card in its first version."""
        at = schema.get_field_index("id")
        schema = schema.set(at, schema.field(at).with_metadata({_CARD: card}))
        if name in self.names():
            raise UserError(
                f"there is a collection {name!r} already", where=self._uri,
                fix=f"give another name, or drop it: crossadapt collection drop {name}",
            )  # fmt: skip
        action: Callable[[], Any] = lambda: self._db.create_table(name, schema=schema)  # noqa: E731
        return self._table(_translated(action, self._uri, writing=True), name)

    def open(self, name: str) -> LanceTable:
        """The table's newest version."""
        names = self.names()
        if name not in names:
            near = did_you_mean(name, names) if names else "there is none yet:"
            raise UserError(
                f"there is no collection {name!r}", where=self._uri,
                fix=f"{near} make one with: crossadapt index PATH --collection {name}",
            )  # fmt: skip
        table = _translated(lambda: self._db.open_table(name), self._uri, writing=False)
        return self._table(table, name)

    def drop(self, name: str) -> None:
        """Delete the table with its files."""
        _translated(lambda: self._db.drop_table(name), self._uri, writing=True)
        if not self._remote:
            shutil.rmtree(Path(self._uri) / f"{name}.lance", ignore_errors=True)

    def _table(self, table: Any, name: str) -> LanceTable:
        return LanceTable(table, f"{self._uri} {name}", self._for_queries)

    def lock(self, name: str, wait: float) -> AbstractContextManager[None]:
        """A lock file beside the tables, or a lease in the object store."""
        if self._remote:
            return lease(self._db, f"{_HIDDEN}lease.{name}", name, self._uri, wait)
        return file_lock(make_folder(Path(self._uri) / ".locks") / name, name, wait)


def _translated(action: Callable[[], ResultT], where: str, *, writing: bool) -> ResultT:
    """Run `action`; an error of the disk or the network becomes one a person can act on."""
    try:
        return action()
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and "panicked" in str(error):
            raise
        reason = write_failure(error)
        if writing and reason is not None:
            raise unwritten(reason, Path(where)) from error
        fix = (
            "check that it exists, that you may use it, and for an object store its address and "
            "credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT, AWS_REGION)"
        )
        if not writing and "not found" in str(error).lower():
            fix = "it may have been maintained or dropped meanwhile: open it again; or " + fix
        raise UserError(
            f"the store cannot be {'written' if writing else 'read'}: {_first_line(error)}",
            where=where,
            fix=fix,
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
