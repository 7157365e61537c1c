"""What a collection holds already, and what each item of a source means for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from crossadapt.search.card import attribute_column, vector_column
from crossadapt.search.collection import Collection
from crossadapt.search.labelling import labelled_columns
from crossadapt.search.sources import Entry


@dataclass(slots=True)
class Stored:
    """A row, as far as a job has to know it."""

    id: str
    item: str
    size: int
    modified: float
    facts: int
    """Hash of everything an update could change; see `facts_of`."""
    missing: tuple[str, ...] = ()
    """Views in which it has no vector."""


def facts_of(entry: Entry, names: Sequence[str]) -> int:
    """A hash, valid in this process, of what can change without the content changing."""
    values = tuple(entry.attributes.get(name) for name in names)
    return hash((entry.item, entry.texts, entry.group, entry.modified, values))


class Known:
    """All rows of a collection by id and by item; about half a kilobyte of memory a row.

    Args:
        collection: open.
        pending: views in which rows may have no vector.
    """

    def __init__(self, collection: Collection, pending: Sequence[str]) -> None:
        # Labels are not in any source; a job that reads sources again must not undo them.
        made = labelled_columns(collection.card)
        self.names = [name for name in collection.card.attributes if name not in made]
        self.by_id: dict[str, Stored] = {}
        self.by_item: dict[str, list[Stored]] = {}
        columns = ["id", "item", "bytes", "modified", "texts", "group"]
        attributes = [attribute_column(name) for name in self.names]
        vectors = {vector_column(view): view for view in pending}
        for batch in collection.scan([*columns, *attributes, *vectors]):
            missing = _missing(batch, vectors)
            rows = batch.select([*columns, *attributes]).to_pylist()
            for place, row in enumerate(rows):
                values = tuple(row[name] for name in attributes)
                texts = tuple(row["texts"] or ())
                facts = hash((row["item"], texts, row["group"], row["modified"], values))
                stored = Stored(
                    row["id"],
                    row["item"],
                    row["bytes"] or 0,
                    row["modified"] or 0.0,
                    facts,
                    missing.get(place, ()),
                )
                self.by_id[stored.id] = stored
                self.by_item.setdefault(stored.item, []).append(stored)

    def match(self, entry: Entry) -> Stored | None:
        """The complete row of an unchanged file: same item, time and (if known) size."""
        for stored in self.by_item.get(entry.item, ()):
            same_size = entry.size is None or entry.size == stored.size
            if entry.modified and stored.modified == entry.modified and same_size:
                return stored if not stored.missing else None
        return None

    def complete(self) -> list[str]:
        """Ids of rows that have all their vectors."""
        return [stored.id for stored in self.by_id.values() if not stored.missing]

    def needs(self, id: str, views: Sequence[str]) -> tuple[str, ...]:
        """Views of which an item with this id still needs a vector."""
        stored = self.by_id.get(id)
        return tuple(views) if stored is None else stored.missing

    def gone(
        self, seen: Iterable[str], unsure: Iterable[str], claimed: Iterable[str]
    ) -> tuple[list[str], list[str]]:
        """Ids whose item has other content now, and ids whose item was not seen at all.

        Args:
            seen: items of the sources.
            unsure: those of them that could not be read, so that nothing is known about them.
            claimed: ids of the contents found.
        """
        items, doubtful, ids = set(seen), set(unsure), set(claimed)
        free = [stored for stored in self.by_id.values() if stored.id not in ids]
        replaced = [s.id for s in free if s.item in items and s.item not in doubtful]
        return replaced, [s.id for s in free if s.item not in items and s.item not in doubtful]


def _missing(batch: pa.RecordBatch, vectors: dict[str, str]) -> dict[int, tuple[str, ...]]:
    """Row to views without a vector there."""
    found: dict[int, tuple[str, ...]] = {}
    for column, view in vectors.items():
        if batch.column(column).null_count:
            for place, null in enumerate(batch.column(column).is_null().to_pylist()):
                if null:
                    found[place] = (*found.get(place, ()), view)
    return found
