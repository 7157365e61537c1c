"""Exact search: products of whole blocks of rows, and the best of each block.

Scores are cosines, because every vector has unit length. With a strength s between 0 and 1 an item
counts as the unit vector along ``(1 - s) frozen + s adapted``; its cosine with a query q follows
from three products, without making that vector:

    cos = ((1 - s) q·f + s q·a) / sqrt((1 - s)² + s² + 2 s (1 - s) f·a)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crossadapt.parallel import spread, stream

BLOCK = 8192
"""Rows that one thread looks at: their scores, of many queries too, stay in its cache."""
FEW_QUERIES = 6
"""Up to so many, one pass over the rows per query is faster than a matrix product."""
_PIECE = 8192


@dataclass(frozen=True)
class Block:
    """Some rows of a collection, in its order."""

    start: int
    """Number of the first row among those searched."""
    vectors: np.ndarray
    """float32 (B, D) of the view searched."""
    frozen: np.ndarray | None = None
    """float32 (B, D) without the adapter, where the strength asks for them."""
    counted: np.ndarray | None = None
    """bool (B,): the rows that may be found; all of them unless given."""


def scores(queries: np.ndarray, block: Block, strength: float = 1.0) -> np.ndarray:
    """Cosines, float32 (Q, B), of queries (Q, D) with the rows of a block."""
    adapted = products(queries, block.vectors)
    if block.frozen is None:
        return adapted
    agreement = np.einsum("bd,bd->b", block.frozen, block.vectors)
    length = (1 - strength) ** 2 + strength**2 + 2 * strength * (1 - strength) * agreement
    mixed = (1 - strength) * products(queries, block.frozen) + strength * adapted
    # Opposite vectors at strength 0.5 leave nothing to point along: such an item matches nothing.
    return np.divide(mixed, np.sqrt(np.maximum(length, 0)), out=np.zeros_like(mixed),
                     where=length > 1e-12)  # fmt: skip


def products(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``queries @ vectors.T``, float32 (Q, B), of (Q, D) and (B, D).

    A product with few columns is bound by reading `vectors`; BLAS reads them at half the speed of
    plain dot products here, so these are taken, by several threads.
    """
    if len(queries) > FEW_QUERIES:
        return queries @ vectors.T
    pieces = [vectors[at : at + _PIECE] for at in range(0, len(vectors), _PIECE)]
    work = functools.partial(_dots, queries)
    return np.concatenate([np.empty((len(queries), 0), np.float32), *spread(work, pieces)], axis=1)


def _dots(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    vecdot: Any = getattr(np, "vecdot", None)  # since numpy 2
    if vecdot is not None:
        return np.stack([vecdot(vectors, query) for query in queries])
    return np.stack([np.einsum("bd,d->b", vectors, query) for query in queries])


def blocks(
    vectors: np.ndarray, frozen: np.ndarray | None, rows: np.ndarray | None, size: int = BLOCK
) -> Iterator[Block]:
    """`vectors` (N, D), or only the given `rows` (P,) of them, in blocks of `size` rows."""
    count = len(vectors) if rows is None else len(rows)
    for start in range(0, count, size):
        chosen = slice(start, start + size) if rows is None else rows[start : start + size]
        yield Block(start, vectors[chosen], None if frozen is None else frozen[chosen])


def masked(parts: Iterable[Block], rows: np.ndarray, count: int) -> Iterator[Block]:
    """Blocks of all `count` rows in which only the given `rows` (P,) may be found.

    Faster than copying these rows out when they are many.
    """
    counted = np.zeros(count, bool)
    counted[rows] = True
    for block in parts:
        yield replace(block, counted=counted[block.start : block.start + len(block.vectors)])


def top(
    queries: np.ndarray, parts: Iterable[Block], k: int, strength: float = 1.0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The best `k` rows of every query; equal scores in the order of the rows.

    Args:
        queries: float32 (Q, D).
        parts: the rows, in order.
        k: at most so many; fewer when there are fewer rows.
        strength: see the top of this file.

    Returns:
        Row numbers, int64 (<= k,), and scores, float32 (<= k,), of each query, best first.
    """
    count = len(queries)
    # What is kept of all queries, in the order of queries, best first.
    owners, rows = np.empty(0, np.int64), np.empty(0, np.int64)
    best = np.empty(0, np.float32)
    floor = np.full((count, 1), -np.inf, np.float32)

    def look(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query, row and score of what may be among the best."""
        found = scores(queries, block, strength)
        if block.counted is not None:
            found[:, ~block.counted] = -np.inf
        # After the first blocks few rows beat a query's k-th best: one comparison, no sorting.
        # The floor may rise meanwhile: one that is too low lets through what is dropped below.
        asked, places = np.divmod(_better(found, floor, k), max(found.shape[1], 1))
        return asked, places + block.start, found[asked, places]

    for asked, places, reached in stream(look, parts):
        if not len(asked):
            continue
        owners = np.concatenate([owners, asked])
        rows = np.concatenate([rows, places])
        best = np.concatenate([best, reached])
        order = np.lexsort((rows, -best, owners))
        owners, rows, best = owners[order], rows[order], best[order]
        keep = np.arange(len(owners)) - np.searchsorted(owners, owners) < k
        owners, rows, best = owners[keep], rows[keep], best[keep]
        ends = np.searchsorted(owners, np.arange(count), "right")
        full = np.diff(ends, prepend=0) == k
        floor[full, 0] = best[ends[full] - 1]
    ends = np.searchsorted(owners, np.arange(1, count))
    return np.split(rows, ends), np.split(best, ends)


def _better(found: np.ndarray, floor: np.ndarray, k: int) -> np.ndarray:
    """Flat numbers of the scores (Q, B) above their query's floor (Q, 1) that can be among `k`.

    Where they are many, as in the first block, only each query's `k` largest and their equals.
    """
    above = found > floor
    if k < found.shape[1] and np.count_nonzero(above) > 4 * k * len(found):
        at = found.shape[1] - k
        above &= found >= np.partition(found, at, axis=1)[:, at : at + 1]
    return np.flatnonzero(above)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float32; a zero row stays zero."""
    vectors = np.asarray(vectors, np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, np.finfo(np.float32).tiny)
