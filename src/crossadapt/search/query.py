"""From a prepared query to hits: search with its vector, gather what is shown, compare.

`Searcher` does it all for one collection; a server that batches calls `prepare`, `embed` and
`rank` itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.errors import UserError
from crossadapt.search.cache import matrix
from crossadapt.search.card import FROZEN, attribute_column, vector_column
from crossadapt.search.clips import find_moments
from crossadapt.search.composing import Vectors, compose, embed, without
from crossadapt.search.query_picture import LIMITS, Limits
from crossadapt.search.request import Prepared, Query, check, prepare

if TYPE_CHECKING:
    from crossadapt.search.calibration import Calibration
    from crossadapt.search.collection import Collection
    from crossadapt.search.embedder import Embedder
    from crossadapt.search.reranking import Reranker

__all__ = [
    "FROZEN",
    "LIMITS",
    "Hit",
    "Limits",
    "Prepared",
    "Query",
    "Result",
    "Searcher",
    "Vectors",
    "check",
    "compose",
    "embed",
    "prepare",
    "rank",
    "without",
]


@dataclass
class Hit:
    """One item found."""

    id: str
    """Id of the item, for "more like this" and for the server's URLs."""
    item: str
    """Path, ``archive.tar#member``, ``file#row`` or built-in name."""
    rank: int
    """1 is the best."""
    cosine: float
    """Likeness of query and item vector, in [-1, 1]."""
    calibrated: float | None
    """Share of unrelated queries that find nothing this striking, in [0, 1]; see `calibration`."""
    kind: str = "image"
    """``image`` or ``video``."""
    texts: list[str] = field(default_factory=list)
    """Captions of the item."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Values of its attributes by plain name; None where it has none."""
    width: int = 0
    """Pixels of the original."""
    height: int = 0
    """Pixels of the original."""
    duration: float = 0.0
    """Seconds; 0 for pictures."""
    frozen_rank: int | None = None
    """Rank of the item by the frozen model among the same items; None unless compared."""
    match: float | None = None
    """Match logit of the fusion tower; None unless re-ranked."""
    start: float | None = None
    """Where in a video the best frame is, in seconds; None for pictures."""
    frame: int | None = None
    """Number of that frame among those stored of the clip."""


@dataclass
class Result:
    """What a query found."""

    hits: list[Hit]
    """Best first; fewer than k when fewer items pass the filter."""
    frozen_hits: list[Hit] | None
    """What the frozen model finds for the same query; None unless compared."""
    view: str
    """The view searched."""
    strength: float
    """The strength in effect."""
    plan: str
    """How it was searched: ``exact``, ``exact on filtered rows`` or ``index``."""
    searched: int
    """Items whose cosine was computed."""
    passing: int
    """Items that pass the filter."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of ``prepare``, ``embed``, ``search``, ``total``, and ``rerank`` where asked for."""
    notes: list[str] = field(default_factory=list)
    """What the asker should know."""


def rank(
    prepared: Prepared,
    vectors: Vectors,
    collection: Collection,
    calibration: Calibration | None = None,
    reranker: Reranker | None = None,
) -> Result:
    """Search with an embedded query and gather everything shown about each hit.

    Args:
        prepared: from `prepare`.
        vectors: from `embed`.
        collection: the collection it was prepared for.
        calibration: adds the calibrated scores; without it they are None.
        reranker: needed for a query with `rerank`.

    Raises:
        UserError: the filter is wrong, or nothing is left of the query.
    """
    began = time.perf_counter()
    notes = list(prepared.notes)
    query, view, strength = prepared.query, prepared.view, prepared.strength
    vector = compose(prepared, vectors, view, strength)
    ids, scores, found = _find(prepared, vector, collection, view, strength)
    views = prepared.views if calibration is not None else ()
    hits, items = _gather(collection, ids, scores, views)
    find_moments(collection, hits, vector, view, strength)
    if not found.passing:
        notes.append(_why_empty(query, collection))
    if calibration is not None and hits:
        names = [hit.id for hit in hits]
        values, note = calibration.score(prepared, vectors, view, strength, names, items)
        for hit, value in zip(hits, values, strict=True):
            hit.calibrated = value
        notes += [note] if note else []
    seconds = {}
    if query.rerank:
        if reranker is None:
            raise UserError("re-ranking is not offered here", where="rerank", fix="leave it out")
        judged, seconds["rerank"], more = reranker.rerank(prepared, hits[: query.rerank])
        hits = [*judged, *hits[query.rerank :]][: query.k]
        notes += more
    frozen_hits = None
    if query.compare:
        frozen_hits = _compare(prepared, vectors, collection, calibration, hits)
    seconds["search"] = time.perf_counter() - began - seconds.get("rerank", 0.0)
    return Result(
        hits, frozen_hits, view, strength, found.plan, found.searched, found.passing, seconds, notes
    )


def _find(
    prepared: Prepared, vector: np.ndarray, collection: Collection, view: str, strength: float
) -> tuple[list[str], list[float], Any]:
    """Ids and cosines of the best k or shortlist, without the liked item; the store's answer."""
    query = prepared.query
    found = collection.search(
        vector,
        max(query.k, query.rerank) + bool(query.like),
        view=view,
        strength=strength,
        filter=query.filter,
        exact=True if query.exact else None,
    )
    pairs = [
        (name, float(score))
        for name, score in zip(found.ids, found.scores, strict=True)
        if name != query.like
    ][: max(query.k, query.rerank)]
    return [name for name, _ in pairs], [score for _, score in pairs], found


def _compare(
    prepared: Prepared,
    vectors: Vectors,
    collection: Collection,
    calibration: Calibration | None,
    hits: Sequence[Hit],
) -> list[Hit]:
    """The frozen view's own hits; `hits` get their rank in it, over the same filter, exact."""
    query = prepared.query
    vector = compose(prepared, vectors, FROZEN, 1.0)
    ids, scores, _ = _find(prepared, vector, collection, FROZEN, 1.0)
    views = (FROZEN,) if calibration is not None else ()
    frozen_hits, items = _gather(collection, ids, scores, views)
    find_moments(collection, frozen_hits, vector, FROZEN, 1.0)
    asked = [hit.id for hit in [*hits, *frozen_hits]]
    ranks = frozen_ranks(collection, vector, asked, query.filter, query.like)
    for hit in [*hits, *frozen_hits]:
        hit.frozen_rank = ranks.get(hit.id)
    if calibration is not None and frozen_hits:
        names = [hit.id for hit in frozen_hits]
        values, _ = calibration.score(prepared, vectors, FROZEN, 1.0, names, items)
        for hit, value in zip(frozen_hits, values, strict=True):
            hit.calibrated = value
    return frozen_hits


def frozen_ranks(
    collection: Collection, vector: np.ndarray, ids: Sequence[str], filter: str, like: str = ""
) -> dict[str, int]:
    """Exact rank, 1 the best, of items by the frozen model among those that pass `filter`.

    A liked item takes no place, as in the hits.
    """
    unique = list(dict.fromkeys([*ids, like] if like else ids))
    ranks = dict(collection.rank_of(vector, unique, view=FROZEN, filter=filter))
    own = ranks.pop(like, None)
    return {name: r - (own is not None and own < r) for name, r in ranks.items()}


def _gather(
    collection: Collection, ids: Sequence[str], scores: Sequence[float], views: Sequence[str]
) -> tuple[list[Hit], dict[str, np.ndarray]]:
    """Hits with everything stored about them, and their vectors (k, D) in `views`."""
    card = collection.card
    columns = ["id", "item", "kind", "texts", "width", "height", "duration"]
    columns += [attribute_column(name) for name in card.attributes]
    table = collection.get(ids, [*columns, *map(vector_column, views)])
    # An item can be deleted by the writer between the search and this look-up.
    score_of = dict(zip(ids, scores, strict=True))
    hits = [
        Hit(
            id=row["id"],
            item=row["item"],
            rank=number,
            cosine=score_of[row["id"]],
            calibrated=None,
            kind=row["kind"] or "image",
            texts=list(row["texts"] or []),
            attributes={name: row[attribute_column(name)] for name in card.attributes},
            width=row["width"] or 0,
            height=row["height"] or 0,
            duration=row["duration"] or 0.0,
        )
        for number, row in enumerate(table.select(columns).to_pylist(), start=1)
    ]
    return hits, {v: matrix(table.column(vector_column(v)), card.dim)[0] for v in views}


def _why_empty(query: Query, collection: Collection) -> str:
    if not len(collection):
        return f"collection {collection.card.name!r} is empty"
    return f"no item passes the filter {query.filter}"


class Searcher:
    """A collection and the embedder it belongs to: ask away.

    Args:
        collection: open; its fingerprints are checked against the embedder's.
        embedder: the collection's backbone with the adapters of its views.
        calibrated: also give calibrated scores.

    Raises:
        UserError: the embedder holds another model than the collection was made with.
    """

    def __init__(
        self, collection: Collection, embedder: Embedder, *, calibrated: bool = True
    ) -> None:
        self.collection, self.embedder = collection, embedder
        self.calibration = None
        self._reranker: Reranker | None = None
        if calibrated:
            from crossadapt.search.calibration import Calibration

            self.calibration = Calibration(collection, embedder)

    def search(
        self, query: Query, limits: Limits = LIMITS, *, picture_name: str = "image"
    ) -> Result:
        """Prepare, embed and rank one query; errors as those three."""
        began = time.perf_counter()
        prepared = prepare(
            query,
            self.collection,
            limits,
            transform=self.embedder.prepare,
            picture_name=picture_name,
        )
        ready = time.perf_counter()
        vectors = embed(prepared, self.embedder)
        embedded = time.perf_counter()
        if query.rerank and self._reranker is None:
            from crossadapt.search.reranking import Reranker

            self._reranker = Reranker(self.collection, self.embedder)
        result = rank(prepared, vectors, self.collection, self.calibration, self._reranker)
        result.seconds = {
            "prepare": ready - began,
            "embed": embedded - ready,
            **result.seconds,
            "total": time.perf_counter() - began,
        }
        return result
