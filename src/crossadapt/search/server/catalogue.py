"""The collections a server offers: each as one fixed version with its model, swapped when rebuilt.

A request takes a `Served` and keeps it to its end, so it sees one version throughout; the next
version is opened, warmed and only then put in its place. The old one is let go when its last
request is done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from crossadapt.errors import UserError, did_you_mean
from crossadapt.search.calibration import Calibration
from crossadapt.search.card import FROZEN, Card
from crossadapt.search.collection import Collection, Collections
from crossadapt.search.query import Query, embed, prepare, rank
from crossadapt.search.server.engines import Bound, Engines
from crossadapt.search.server.failures import Failure

if TYPE_CHECKING:
    from crossadapt.search.embedder import Embedder

log = logging.getLogger("crossadapt.server")

EXAMPLES = 8
"""Captions that are offered as example queries."""
_EXAMPLE_LENGTH = 60
_LOOKED_AT = 2000


@dataclass
class Served:
    """One version of a collection, ready to be searched."""

    collection: Collection
    bound: Bound
    calibration: Calibration
    stats: dict[str, Any]
    """What `Collection.stats` said when it was opened."""
    examples: list[str]
    users: int = 0
    retired: bool = False
    opened: float = field(default_factory=time.time)

    @property
    def card(self) -> Card:
        """The card of this version."""
        return self.collection.card

    @property
    def version(self) -> tuple[str, int]:
        """What tells it from every other version."""
        return self.card.uid, self.collection.version


class Catalogue:
    """Collections by name; safe to use from several threads.

    Args:
        home: where they are.
        names: those to offer.
        engines: the models, shared by all.
        on_change: told every version that is served from now on.

    Raises:
        UserError: there is none of that name, or its model is gone or another.
    """

    def __init__(
        self,
        home: Collections,
        names: Sequence[str],
        engines: Engines,
        on_change: Callable[[Served], None] = lambda served: None,
    ) -> None:
        self.home, self.engines, self.on_change = home, engines, on_change
        self.names = tuple(dict.fromkeys(names))
        self.problems: dict[str, str] = {}
        """Collection to why its newest version is not the one that is served."""
        self._lock = threading.Lock()
        opened = [home.open(name) for name in self.names]  # names first: loading takes long
        self._served: dict[str, Served] = {}
        for name, collection in zip(self.names, opened, strict=True):
            self._served[name] = self._ready(collection)
            on_change(self._served[name])

    @contextmanager
    def using(self, name: str) -> Iterator[Served]:
        """The newest version of a collection, which stays as it is until the block ends.

        Raises:
            Failure: 404, it is not offered here.
        """
        with self._lock:
            served = self._served.get(name)
            if served is None:
                raise Failure(
                    404,
                    f"there is no collection {name[:100]!r} here",
                    where="collection",
                    fix=did_you_mean(name[:100], self._served),
                )
            served.users += 1
        try:
            yield served
        finally:
            with self._lock:
                served.users -= 1
                gone = served.retired and not served.users
            if gone:
                self.engines.release(served.bound)

    def reload(self) -> list[str]:
        """Serve the newest version of every collection; returns the names of those that changed.

        A collection that cannot be opened, or whose model does not fit, stays as it was; why is
        logged once and kept in `problems`.
        """
        changed = []
        for name in self.names:
            try:
                if self._reload(name):
                    changed.append(name)
                self.problems.pop(name, None)
            except UserError as error:
                if self.problems.get(name) != error.what:
                    log.warning("collection %s is not reloaded: %s", name, error)
                self.problems[name] = error.what
        return changed

    def _reload(self, name: str) -> bool:
        fresh = self.home.open(name)
        old = self._served[name]
        if (fresh.card.uid, fresh.version) == old.version:
            return False
        served = self._ready(fresh)
        with self._lock:
            self._served[name] = served
            old.retired = True
            gone = not old.users
        if gone:
            self.engines.release(old.bound)
        self.on_change(served)
        log.info("collection %s: version %d, %d rows", name, fresh.version, len(fresh))
        return True

    def _ready(self, collection: Collection) -> Served:
        """A version with its model, warm, so that its first request is not slow."""
        bound = self.engines.bind(collection, self.home.uri)
        try:
            embedder = cast("Embedder", bound)  # it has what these two call
            calibration = Calibration(collection, embedder)
            for view in collection.card.view_names:
                prepared = prepare(Query(text="warm up", k=1, view=view), collection)
                rank(prepared, embed(prepared, embedder), collection, calibration)
            return Served(collection, bound, calibration, collection.stats(), examples(collection))
        except BaseException:
            self.engines.release(bound)
            raise

    def all(self) -> list[tuple[str, Served]]:
        """What is served, in the order the names were given."""
        with self._lock:
            return [(name, self._served[name]) for name in self.names]

    def adapters(self) -> list[dict[str, Any]]:
        """Each adapter in use once, with the collections that hold its embeddings."""
        found: dict[str, dict[str, Any]] = {}
        for name, served in self.all():
            for view in served.card.views:
                if view.name == FROZEN:
                    continue
                share = view.trained / served.bound.engine.parameters
                entry = found.setdefault(
                    f"{view.name} {view.fingerprint}",
                    {
                        "name": view.name,
                        "method": view.method,
                        "trained": view.trained,
                        "share": share,
                        "fingerprint": view.fingerprint,
                        "collections": [],
                    },
                )
                entry["collections"].append(name)
        return list(found.values())


def examples(collection: Collection, count: int = EXAMPLES) -> list[str]:
    """Short captions spread over the first rows of a collection, each once."""
    texts: dict[str, None] = {}
    looked = 0
    for batch in collection.scan(["texts"]):
        for captions in batch.column("texts").to_pylist():
            short = [t for t in captions or () if 0 < len(t) <= _EXAMPLE_LENGTH]
            if short:
                texts.setdefault(short[0])
        looked += batch.num_rows
        if looked >= _LOOKED_AT:
            break
    found = list(texts)
    step = max(1, len(found) // count)
    return found[::step][:count]


def health(name: str, served: Served, problems: Mapping[str, str]) -> dict[str, Any]:
    """How a collection is: its index, what is not in it yet, recall, ledger, model."""
    stats = served.stats
    ledger = stats.get("ledger") or {}
    return {
        "index": stats["index"],
        "indexed_rows": stats["indexed_rows"],
        "unindexed_rows": stats["unindexed_rows"],
        "recall": stats["recall"],
        "version": stats["version"],
        "ledger": {"count": ledger.get("count", 0), "reasons": ledger.get("reasons", {})},
        "backbone": stats["backbone"],
        "fingerprint": stats["fingerprint"],
        "notes": list(stats.get("notes", ())),
        "problem": problems.get(name),
    }
