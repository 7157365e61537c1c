"""Collections: stored, searchable embeddings bound to the model that made them.

with Collections("shop/").create(card) as collection:     # holds the writer's lock
    collection.upsert(rows)
hits = Collections("shop/").open("shoes").search(vector, k=5, filter="price < 50")
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from crossadapt.errors import UserError
from crossadapt.search import cache
from crossadapt.search.card import Card, View, check_name
from crossadapt.search.index_plan import Hits
from crossadapt.search.opened import Collection
from crossadapt.search.store.protocol import CollectionStore

__all__ = ["EXACT_LIMIT", "Card", "Collection", "Collections", "Hits", "View", "default_store"]

EXACT_LIMIT = 500_000
"""Rows up to which every search is exact; above, an index is used once `maintain` has built it."""


def default_store() -> str:
    """Where collections are unless ``--store`` says otherwise: ``$CROSSADAPT_STORE`` or home."""
    return os.environ.get("CROSSADAPT_STORE") or str(
        Path.home() / ".local" / "share" / "crossadapt" / "collections"
    )


class Collections:
    """The collections of one folder or object store.

    Args:
        uri: a folder or ``s3://bucket/path``; `default_store` unless given.
        storage_options: credentials and settings of an object store, as LanceDB names them.
        store: another engine instead of LanceDB.
        exact_limit: see `EXACT_LIMIT`.
        wait: seconds to wait for another writer.
    """

    def __init__(
        self,
        uri: str | Path | None = None,
        storage_options: Mapping[str, str] | None = None,
        *,
        store: CollectionStore | None = None,
        exact_limit: int = EXACT_LIMIT,
        wait: float = 10.0,
    ) -> None:
        if store is None:
            from crossadapt.search.store.lance import LanceStore

            store = LanceStore(uri if uri is not None else default_store(), storage_options)
        self.store, self.exact_limit, self.wait = store, exact_limit, wait

    @property
    def uri(self) -> str:
        """Where the collections are."""
        return self.store.uri

    def names(self) -> list[str]:
        """All collections, sorted."""
        return self.store.names()

    def open(self, name: str, *, write: bool = False) -> Collection:
        """A collection, to read or (one process at a time) to write.

        Raises:
            UserError: there is none of that name, a newer program wrote it, or another writer has
                it for longer than `wait` seconds.
        """
        check_name(name)
        with contextlib.ExitStack() as held:
            if write:
                self.store.open(name)  # an unknown name is said at once, not after waiting
                held.enter_context(self.store.lock(name, self.wait))
            table = self.store.open(name)
            card = Card.from_json(table.read_card(), where=f"{self.uri} {name}")
            return Collection(self, card, table, held.pop_all() if write else None)

    def create(self, card: Card) -> Collection:
        """A new, empty collection, open for writing.

        Raises:
            UserError: the name is taken, or the place cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        card = card.changed(uid=uuid.uuid4().hex, created=card.created or now)
        with contextlib.ExitStack() as held:
            held.enter_context(self.store.lock(card.name, self.wait))
            table = self.store.create(card.name, card.schema, card.to_json())
            return Collection(self, card, table, held.pop_all())

    def drop(self, name: str) -> None:
        """Delete a collection, also one that a newer program wrote."""
        check_name(name)
        table = self.store.open(name)
        with self.store.lock(name, self.wait):
            uid = ""
            with contextlib.suppress(UserError):
                uid = Card.from_json(table.read_card()).uid
            self.store.drop(name)
            cache.forget(uid)
