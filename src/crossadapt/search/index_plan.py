"""How a search is answered: exactly, exactly on the few rows that pass, or through the index.

Up to the exact limit every search is exact: one product with the rows that pass. Above it the
index is used, with the probes at which `gate.maintain` measured the wanted recall. A filter changes
that: the neighbours that pass may lie in parts of the index an unfiltered search would not look at.
So the rows that pass are counted first. When they are few they are all compared; otherwise the
probes are doubled until the answer no longer changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from crossadapt.errors import UserError
from crossadapt.search import pruning
from crossadapt.search.arrow import pc
from crossadapt.search.card import FROZEN, Card
from crossadapt.search.exact import FEW_QUERIES, Block, blocks, masked, scores, top, unit
from crossadapt.search.filters import Condition
from crossadapt.search.snapshot import Snapshot

FEW = 20_000
"""Rows that pass a filter up to which all of them are compared."""
_DENSE_FEW, _DENSE_MANY = 0.2, 0.7
"""Shares of rows above which a product with all is faster than copying these out."""
EXACT, FILTERED, INDEX = "exact", "exact on filtered rows", "index"


@dataclass(frozen=True)
class Hits:
    """The answer to one query, best first."""

    ids: list[str]
    scores: np.ndarray
    """Cosines, float32 (k,)."""
    plan: str
    """``exact``, ``exact on filtered rows`` or ``index``."""
    searched: int
    """Rows compared; for the index an estimate."""
    passing: int
    """Rows that pass the filter."""


def checked_queries(vectors: np.ndarray, card: Card) -> np.ndarray:
    """Unit queries, float32 (Q, D), of one vector (D,) or several (Q, D).

    Raises:
        UserError: another length than the collection's, not finite, or zero.
    """
    queries = np.atleast_2d(np.asarray(vectors, np.float32))
    if queries.ndim != 2 or queries.shape[1] != card.dim:
        raise UserError(
            f"the query has shape {np.shape(vectors)}; the collection's vectors have {card.dim}",
            where=card.name,
            fix="make the query with the model the collection was made with",
        )
    if not np.isfinite(queries).all() or not queries.any(axis=1).all():
        raise UserError("the query is zero or not finite", where=card.name)
    return np.ascontiguousarray(unit(queries))


def search(
    snapshot: Snapshot,
    queries: np.ndarray,
    k: int,
    *,
    view: str | None,
    strength: float,
    text: str,
    exact: bool | None,
) -> list[Hits]:
    """Answer unit queries (Q, D); arguments as `Collection.search`."""
    if k < 1:
        raise UserError(f"k is {k}", where="k", fix="ask for at least one result")
    chosen, strength = snapshot.strength(view, strength)
    where = snapshot.condition(text)
    facts = index_facts(snapshot, chosen, strength)
    if exact or not facts or (snapshot.small and exact is None):
        plan = EXACT if where is None else FILTERED
        return _exactly(snapshot, queries, k, chosen, strength, where, plan)
    passing = snapshot.passing(where)
    if passing <= max(FEW if where is not None else 0, k):
        return _exactly(snapshot, queries, k, chosen, strength, where, FILTERED)
    return _by_index(snapshot, queries, k, chosen, strength, where, passing, facts)


def index_facts(snapshot: Snapshot, view: str, strength: float) -> dict[str, dict[str, Any]]:
    """View to what was measured of its index; empty when one that is needed has none."""
    known = snapshot.index.get("views", {})
    needed = {view, FROZEN} if strength < 1 else {view}
    return {name: known[name] for name in needed} if needed <= known.keys() else {}


def _exactly(
    snapshot: Snapshot, queries: np.ndarray, k: int, view: str, strength: float,
    where: Condition | None, plan: str,
) -> list[Hits]:  # fmt: skip
    if snapshot.small:
        return _in_memory(snapshot, queries, k, view, strength, where, plan)
    ids: list[pa.Array] = []
    seen = 0

    def parts() -> Any:
        nonlocal seen
        for block, names in snapshot.blocks(view, strength, where):
            ids.append(names)
            seen += len(names)
            yield block

    rows, best = top(queries, parts(), k, strength)
    names = pa.chunked_array(ids, pa.string())
    # Rows without a vector in this view pass the filter all the same.
    passing = snapshot.passing(where)
    return [
        Hits(names.take(pa.array(row)).to_pylist(), values, plan, seen, passing)
        for row, values in zip(rows, best, strict=True)
    ]


def _in_memory(
    snapshot: Snapshot, queries: np.ndarray, k: int, view: str, strength: float,
    where: Condition | None, plan: str,
) -> list[Hits]:  # fmt: skip
    cached = snapshot.cached
    mixed = strength < 1
    chosen, passing = snapshot.numbers(view, mixed, where)
    vectors, frozen = cached.vectors[view], cached.vectors[FROZEN] if mixed else None
    count = len(cached) if chosen is None else len(chosen)
    few = len(queries) <= FEW_QUERIES
    dense = chosen is None or count > (_DENSE_FEW if few else _DENSE_MANY) * len(cached)
    head = cached.heads.get(view)
    if few and dense and not mixed and head is not None:
        rows, best = _pruned(queries, vectors, head, k, chosen)
        chosen = None
    elif dense and chosen is not None:
        parts, chosen = masked(blocks(vectors, frozen, None), chosen, len(cached)), None
        rows, best = top(queries, parts, k, strength)
    else:
        rows, best = top(queries, blocks(vectors, frozen, chosen), k, strength)
    ids = cached.rows["id"]
    result = []
    for row, values in zip(rows, best, strict=True):
        places = row if chosen is None else chosen[row]
        names = ids.take(pa.array(places)).to_pylist()
        result.append(Hits(names, values, plan, count, passing))
    return result


def _pruned(
    queries: np.ndarray, vectors: np.ndarray, head: pruning.Head, k: int, chosen: np.ndarray | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`top` of all rows or the `chosen` ones, query by query, with the heads where they help."""
    counted = None
    if chosen is not None:
        counted = np.zeros(len(vectors), bool)
        counted[chosen] = True
    rows, best = [], []
    for query in queries:
        found = pruning.best(query, vectors, head, k, counted)
        if found is None:
            parts: Any = blocks(vectors, None, None)
            parts = parts if chosen is None else masked(parts, chosen, len(vectors))
            (row,), (values,) = top(query[None], parts, k)
        else:
            row, values = found
        rows.append(row)
        best.append(values)
    return rows, best


def _by_index(
    snapshot: Snapshot, queries: np.ndarray, k: int, view: str, strength: float,
    where: Condition | None, passing: int, facts: dict[str, dict[str, Any]],
) -> list[Hits]:  # fmt: skip
    mixed = strength < 1
    depth = max(5 * k, 100) if mixed else k
    asked = {
        name: probe(snapshot, queries, name, depth, where, passing, fact)
        for name, fact in facts.items()
    }
    result = []
    for number, query in enumerate(queries):
        found: dict[str, float] = {}
        searched = 0
        for name, answers in asked.items():
            ids, values, probes = answers[number]
            found |= dict(zip(ids, values.tolist(), strict=True))
            searched += math.ceil(passing * min(1.0, probes / facts[name]["partitions"]))
        ids = list(found)
        values = np.array(list(found.values()), np.float32)
        if mixed:
            ids, values = rescored(snapshot, query, ids, view, strength)
        order = np.argsort(-values, kind="stable")[:k]
        result.append(Hits([ids[i] for i in order], values[order], INDEX, searched, passing))
    return result


def probe(
    snapshot: Snapshot, queries: np.ndarray, view: str, k: int, where: Condition | None,
    passing: int, fact: dict[str, Any],
) -> list[tuple[list[str], np.ndarray, int]]:  # fmt: skip
    """Ids, cosines and probes of an index search of each query (Q, D).

    With a filter, probes are added until the answer is stable.
    """
    partitions = int(fact["partitions"])
    probes = min(partitions, int(fact["probes"]))
    if where is not None:
        # The k-th neighbour that passes is as far out as the (k / share)-th of all, or farther when
        # the filter and the place go together. Rows that do not pass cost a probe nothing. Two
        # answers out of very few parts can agree by chance, so there is a least number of them.
        share = max(passing / max(snapshot.count, 1), 1e-6)
        probes = min(partitions, math.ceil(max(probes, partitions // 100) / share))
    answers = snapshot.nearest(view, queries, k, where, probes, partitions)
    found = [(*answer, probes) for answer in answers]
    left = [] if where is None else list(range(len(queries)))
    while left and probes < partitions:
        probes = min(partitions, 2 * probes)
        wider = snapshot.nearest(view, queries[left], k, where, probes, partitions)
        unstable = []
        for number, (ids, values) in zip(left, wider, strict=True):
            if set(ids) != set(found[number][0]) or len(ids) < k:
                unstable.append(number)
            found[number] = (ids, values, probes)
        left = unstable
    return found


def rescored(
    snapshot: Snapshot, query: np.ndarray, ids: Sequence[str], view: str, strength: float
) -> tuple[list[str], np.ndarray]:
    """The given items with their exact mixed cosines; those without both vectors are left out."""
    adapted, frozen = snapshot.vectors(ids, view), snapshot.vectors(ids, FROZEN)
    both = [name for name in ids if name in adapted and name in frozen]
    if not both:
        return [], np.empty(0, np.float32)
    block = Block(0, np.stack([adapted[n] for n in both]), np.stack([frozen[n] for n in both]))
    return both, scores(query[None], block, strength)[0]


def ranks(
    snapshot: Snapshot,
    query: np.ndarray,
    ids: Sequence[str],
    *,
    view: str | None,
    strength: float,
    text: str,
) -> dict[str, int]:
    """Exact ranks, from 1, of items among all rows that pass; query is (1, D)."""
    chosen, strength = snapshot.strength(view, strength)
    where = snapshot.condition(text)
    wanted = pa.array(list(dict.fromkeys(ids)), pa.string())
    mine: dict[str, float] = {}
    above: list[np.ndarray] = []
    for block, names in snapshot.blocks(chosen, strength, where):
        found = scores(query, block, strength)[0]
        above.append(found)
        for place in pc.indices_nonzero(pc.is_in(names, value_set=wanted)).to_pylist():
            mine[names[place].as_py()] = found[place]
    if not above:
        return {}
    ordered = np.sort(np.concatenate(above))
    return {
        name: int(len(ordered) - np.searchsorted(ordered, mine[name], "right")) + 1
        for name in wanted.to_pylist()
        if name in mine
    }
