"""What an engine must offer to hold collections. Small, so that a second one can.

Nothing here knows models, queries or plans: a table of rows with an id, versions, a JSON card that
is stored with the rows, and nearest neighbours of one vector column by inner product.
`tests/search/test_store_conformance.py` is what an engine has to pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from crossadapt.search.filters import Condition


@dataclass(frozen=True)
class IndexState:
    """The approximate index of one vector column."""

    kind: str
    """Such as ``IVF_FLAT``."""
    rows: int
    """Rows it covers."""
    unindexed: int
    """Rows written since, which a search reads one by one."""


class StoredTable(Protocol):
    """One stored collection, seen at one version until `refresh` or an own write.

    A write is atomic: other readers see all of it or nothing, also after a crash in its middle.
    """

    @property
    def version(self) -> int:
        """Number of the version seen; every write makes a higher one."""
        ...

    @property
    def index_kind(self) -> str:
        """The `IndexState.kind` that `build_index` makes and `nearest` understands."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Columns at this version."""
        ...

    def refresh(self) -> bool:
        """See the newest version; whether it is another one."""
        ...

    def read_card(self) -> str:
        """The JSON text stored with this version; empty when there is none."""
        ...

    def write_card(self, text: str) -> None:
        """Store the JSON text as a new version."""
        ...

    def count(self, where: Condition | None = None) -> int:
        """Rows that pass."""
        ...

    def scan(
        self, columns: Sequence[str], where: Condition | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows that pass, in an order that is the same for every scan of one version."""
        ...

    def upsert(self, rows: pa.Table) -> None:
        """Insert rows, or replace the given columns of those whose id is known.

        Columns that `rows` does not have keep their value, or are null in a new row.
        """
        ...

    def delete(self, where: Condition) -> int:
        """Delete the rows that pass; returns how many."""
        ...

    def add_columns(self, fields: Sequence[pa.Field]) -> None:
        """New columns, null in every row."""
        ...

    def drop_columns(self, names: Sequence[str]) -> None:
        """Remove columns and their indexes."""
        ...

    def nearest(
        self,
        column: str,
        vectors: np.ndarray,
        k: int,
        where: Condition | None = None,
        probes: int | None = None,
    ) -> list[tuple[list[str], np.ndarray]]:
        """Ids and inner products (k,) of the nearest rows that pass, of each vector (Q, D).

        Best first. Rows the index does not cover are searched too. `probes` partitions are looked
        at; a number above theirs means all of them.
        """
        ...

    def index(self, column: str) -> IndexState | None:
        """The column's approximate index."""
        ...

    def build_index(self, column: str, partitions: int) -> None:
        """Build the column's approximate index of so many partitions, or replace it."""
        ...

    def compact(self, keep_seconds: float) -> None:
        """Merge small files, extend the indexes to all rows, forget versions older than that."""
        ...

    def size(self) -> int:
        """Bytes this version takes."""
        ...


class CollectionStore(Protocol):
    """A place that holds collections by name."""

    @property
    def uri(self) -> str:
        """Where it is: a folder, ``s3://bucket/path``, ..."""
        ...

    def names(self) -> list[str]:
        """All collections, sorted."""
        ...

    def create(self, name: str, schema: pa.Schema, card: str) -> StoredTable:
        """A new, empty collection.

        Raises:
            UserError: the name is taken, or the place cannot be written.
        """
        ...

    def open(self, name: str) -> StoredTable:
        """The newest version of a collection.

        Raises:
            UserError: there is none of that name; the nearest is named.
        """
        ...

    def drop(self, name: str) -> None:
        """Delete a collection."""
        ...

    def lock(self, name: str, wait: float) -> AbstractContextManager[None]:
        """The right to write a collection; readers need none. Waits up to `wait` seconds.

        Raises:
            UserError: somebody else still has it; who is named.
        """
        ...
