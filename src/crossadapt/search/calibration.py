"""Calibrated scores: how a hit compares with what unrelated queries find in the same collection.

A cosine says little by itself: some queries lie close to everything, some items close to every
query, and 0.3 is a lot for one model and nothing for another. So every query is held against M
**null queries** n_j that have nothing to do with the collection. For item x_i,

    mu_i, sigma_i = mean and deviation of n_j . x_i over the null queries
    z_i(q)        = (q . x_i - mu_i) / sigma_i          how unusual q . x_i is for that item
    best_j        = max over i of z_i(n_j)              the most striking find of a null query

    calibrated(hit i of q) = share of null queries with best_j < z_i(q)

It lies in [0, 1] in steps of 1/M and is one minus the p-value of "q is as unrelated to the
collection as the null queries are", with the maximum over all items already paid for; that makes
it comparable between queries. `best_j` leaves n_j out of its own mu and sigma.

What the null queries are follows the query, which they imitate part by part, with the same
strength, weight and excluded words:

* *text*: the 206 short texts of ``null_queries.txt``, office phrases, questions, numbers,
  gibberish, drawings of odd trades. High means: unrelated words would not find this.
* *picture*, or "more like this": 200 items of the collection, each without itself. Pictures lie
  much nearer to pictures than texts do, so text statistics would call every picture query a
  perfect match, and bundled pictures would only say that photographs are not drawings. With the
  collection's own items it is the conformal nearest-neighbour test: 0.5 is as near as the nearest
  neighbour of a typical item, 0 is farther from everything than the items are from each other.
* *text and picture*: the mixture of a null text and an item of the collection.

Limits. The resolution is 1/M. A null query that the collection does hold lowers every score by at
most 1/M. The maximum runs over the whole collection also when the query has a filter, which makes
filtered scores a little too low. Below 20 items there is no score for queries with a picture.
Above `SAMPLE` rows the maximum is that of a random sample, extrapolated to the collection by a
Gaussian tail: ``best_j^2 + beta_j log(N / n)``, beta_j the mean excess of its largest 1 % of z^2.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.data.files import cache_dir
from crossadapt.errors import UserError
from crossadapt.files import write_file
from crossadapt.search.cache import matrix
from crossadapt.search.card import FROZEN, vector_column
from crossadapt.search.composing import (
    Vectors,
    blended,
    compose,
    excluded_vector,
    mixed,
    without,
)
from crossadapt.search.null_statistics import Nulls, best_finds, statistics
from crossadapt.search.request import Prepared

if TYPE_CHECKING:
    from crossadapt.search.collection import Collection
    from crossadapt.search.embedder import Embedder

SAMPLE = 16_384
"""Rows on which the best finds of the null queries are measured."""
PICTURES = 200
"""Items of the collection that serve as null pictures."""
FEWEST = 20
"""Items needed to calibrate a query with a picture."""

_KEPT = 64


@cache
def null_queries() -> tuple[str, ...]:
    """The bundled null queries."""
    text = (files("crossadapt.search") / "null_queries.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


@dataclass(frozen=True)
class Sample:
    """Some rows of one version of a collection."""

    ids: list[str]
    """Sorted."""
    vectors: dict[str, np.ndarray]
    """View to float32 (n, D)."""
    total: int
    """Rows of the collection."""


class Calibration:
    """Calibrated scores for one collection; safe to use from several threads.

    The null texts are embedded once per view, the rows sampled once per version, and the best
    finds computed once per version, view, strength and kind of query.

    Args:
        collection: open; a refreshed version is noticed.
        embedder: embeds the null texts.
        sample: rows to measure on; see `SAMPLE`.
    """

    def __init__(self, collection: Collection, embedder: Embedder, *, sample: int = SAMPLE) -> None:
        self.collection, self.embedder, self.sample = collection, embedder, sample
        self._lock = threading.Lock()
        self._texts: dict[tuple[str, str], np.ndarray] = {}
        self._rows: tuple[Any, Sample] | None = None
        self._best: OrderedDict[Any, np.ndarray] = OrderedDict()

    def score(
        self,
        prepared: Prepared,
        vectors: Vectors,
        view: str,
        strength: float,
        ids: Sequence[str],
        items: Mapping[str, np.ndarray],
    ) -> tuple[list[float | None], str]:
        """Calibrated scores of items for one query.

        Args:
            prepared: the query.
            vectors: its embedded parts.
            view: the view searched.
            strength: the strength in effect.
            ids: the k items.
            items: their vectors (k, D), by every view the strength needs.

        Returns:
            One score per item, or None for all and a note that says why.
        """
        views = (view,) if strength == 1 or view == FROZEN else (view, FROZEN)
        with self._lock:
            sample = self._sampled()
            rows = blended({v: sample.vectors[v] for v in views}, view, strength)
            nulls = self._nulls(prepared, vectors, view, strength, rows)
            if nulls is None:
                return [None] * len(ids), (
                    f"no calibrated scores: they need {FEWEST} items for a query with a picture"
                )
            key = (self._version(), view, strength, _kind(prepared))
            best = self._best.pop(key, None)
            if best is None:
                best = best_finds(nulls, rows, sample.total)
            self._best[key] = best
            while len(self._best) > _KEPT:
                self._best.popitem(last=False)
        own = None
        if nulls.own is not None:
            at = {name: column for column, name in enumerate(ids)}
            own = np.array([at.get(sample.ids[row], -1) for row in nulls.own])
        hits = blended({v: items[v] for v in views}, view, strength)
        query = compose(prepared, vectors, view, strength)
        mean, sigma, _ = statistics(nulls.vectors @ hits.T, own)
        z = (hits @ query - mean) / sigma
        return [float(share) for share in np.searchsorted(best, z, side="left") / len(best)], ""

    def _version(self) -> tuple[str, int]:
        return self.collection.card.uid, self.collection.version

    def _sampled(self) -> Sample:
        version = self._version()
        if self._rows is None or self._rows[0] != version:
            self._rows = (version, take_sample(self.collection, self.sample))
            self._best.clear()
        return self._rows[1]

    def _nulls(
        self, prepared: Prepared, vectors: Vectors, view: str, strength: float, rows: np.ndarray
    ) -> Nulls | None:
        """Null queries made like the query; None when the collection is too small for them."""
        texts = pictures = own = None
        if prepared.query.text:
            by_view = {v: self._null_texts(v) for v in (view, FROZEN) if v in vectors}
            texts = blended(by_view, view, strength)
        if prepared.pixels is not None or prepared.liked:
            if len(rows) < FEWEST:
                return None
            own = np.unique(np.linspace(0, len(rows) - 1, PICTURES).astype(np.int64))
            if texts is not None:
                own = np.resize(own, len(texts))
            pictures = rows[own]
        null = mixed(texts, pictures, prepared.query.weight)
        excluded = excluded_vector(prepared, vectors, view, strength)
        return Nulls(null if excluded is None else without(null, excluded), own)

    def _null_texts(self, view: str) -> np.ndarray:
        card = self.collection.card
        key = (view, card.view(view).fingerprint)
        if key not in self._texts:
            self._texts[key] = kept_vectors(
                f"{key[1]} {card.precision}" if key[1] else "",
                card.dim,
                lambda: self.embedder.texts(null_queries(), view),
            )
        return self._texts[key]


def kept_vectors(model: str, dim: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The null queries' vectors (M, dim) from the cache folder, where they are put when missing.

    `model` is whatever identifies the model; when it is empty nothing is kept. It saves the
    command line from embedding 206 texts for every query.
    """
    if not model:
        return make()
    digest = hashlib.sha256("\n".join((model, *null_queries())).encode()).hexdigest()[:32]
    path = cache_dir() / "null-queries" / f"{digest}.npy"
    shape = (len(null_queries()), dim)
    with contextlib.suppress(OSError, ValueError, EOFError):
        vectors = np.load(path)
        if vectors.shape == shape and vectors.dtype == np.float32:
            return vectors
    vectors = make()
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    with contextlib.suppress(UserError):  # a cache that cannot be written is no reason to stop
        write_file(path, buffer.getvalue())
    return vectors


def take_sample(collection: Collection, size: int) -> Sample:
    """`size` random rows that have a vector in every view, or all of them; the same every time."""
    views = collection.card.view_names
    columns = ["id", *map(vector_column, views)]
    ids = sorted(
        name for batch in collection.scan(["id"]) for name in batch.column("id").to_pylist()
    )
    total = len(ids)
    if total > size:
        ids = sorted(np.random.default_rng(0).choice(np.array(ids), size, replace=False).tolist())
        tables = [collection.get(ids, columns)]
    else:
        tables = list(collection.scan(columns))
    found: dict[str, list[np.ndarray]] = {}
    for table in tables:
        parts = [matrix(table.column(vector_column(view)), collection.card.dim) for view in views]
        gone = {int(row) for _, nulls in parts for row in nulls}
        for row, name in enumerate(table.column("id").to_pylist()):
            if row not in gone:
                found[name] = [part[row] for part, _ in parts]
    names = sorted(found)
    empty = np.empty((0, collection.card.dim), np.float32)
    return Sample(
        names,
        {
            view: np.stack([found[name][at] for name in names]) if names else empty
            for at, view in enumerate(views)
        },
        total,
    )


def _kind(prepared: Prepared) -> tuple[Any, ...]:
    """What the null queries depend on, besides view and strength."""
    query = prepared.query
    picture = prepared.pixels is not None or bool(prepared.liked)
    weight = query.weight if query.text and picture else 1.0
    excluded = hashlib.sha256(query.exclude.encode()).digest() if query.exclude else b""
    return bool(query.text), picture, weight, excluded
