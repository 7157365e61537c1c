"""Exact search that reads a part of every vector first, and the whole of the few that can win.

Let the columns of U (D, d) be the d directions in which the vectors x are longest (their principal
axes, not centred), a = U'x and b = U'q. With x = U a + r, q = U b + s and E = U'U - 1,

    q·x = b·a - b'E a + s·r        so        q·x <= b·a + |s| |r| + |E| |a| |b|

(expand; U'r = -E a and U's = -E b). Stored are the *head* h, which is a in float32, and the *tail*,
a number not below |r|: |r|² = |x|² - |a|² + a'E a. A search computes the bound for every row from
d + 1 numbers instead of D, then the scores of the best of them as the plain search does; let the
k-th best of these be the *floor*. A row whose bound lies below the floor has k rows above it, so
the scores of all others, computed as the plain search does, hold the answer with all its ties.

"Computed" is in float32, so the bound is raised by what rounding may do (u = 2^-24, sums in any
order; see `crossadapt.evaluation.counting`): (D + 2) u |q| |x| for the plain score, the same with d
for the product of the heads, and sqrt(d) (D + 2) u |x| |q| for the difference of h and a. Ids and
scores are those of the plain search, bit for bit. Where the bounds exclude too little, the plain
search is made instead; vectors that are spread evenly over all directions get no heads at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from crossadapt.search.exact import products

LEAST_ROWS = 50_000
"""Below, the plain search takes a few milliseconds."""
_SHARES = (8, 4, 2)
"""Heads tried: D divided by these."""
_PROMISING = 0.01
"""Share of rows that may be left for a head to be kept, as a median over trial queries."""
_TRIALS, _NEAREST = 8, 10
_SAMPLE, _TRIED = 20_000, 4
"""Rows that give the axes; a head is tried on every so many-th row."""
_BLOCK = 8192
_TOO_MANY = 0.1
"""Share of rows left above which the plain search is as fast."""
_U = 2.0**-24


@dataclass(frozen=True)
class Head:
    """The leading coordinates of all vectors of a view."""

    basis: np.ndarray
    """U, float32 (D, d)."""
    rows: np.ndarray
    """Heads h, float32 (N, d)."""
    tails: np.ndarray
    """float32 (N,)."""
    longest: float
    """Not below the length of any vector."""

    @functools.cached_property
    def _exact(self) -> tuple[np.ndarray, float]:
        """U in float64, and its `_skew`."""
        exact = self.basis.astype(np.float64)
        return exact, _skew(exact)

    def bounds(self, query: np.ndarray) -> np.ndarray:
        """Numbers not below the plain scores of a query (D,), float32 (N,)."""
        wide, size = self.basis.shape
        exact, skew = self._exact
        asked = query.astype(np.float64)
        inside = exact.T @ asked
        length = float(np.linalg.norm(asked))
        rest = np.sqrt(max(length**2 - (1 - skew) * float(inside @ inside), 0) + 1e-12 * length**2)
        sums = (2 * wide + size + 20 + np.sqrt(size) * (wide + 2)) * _U
        slack = 1.1 * length * self.longest * (skew + sums) + wide * 2.0**-120
        found = products(inside.astype(np.float32)[None], self.rows)[0]
        found += self.tails * np.float32(rest)
        found += np.float32(slack)
        return found


def _skew(basis: np.ndarray) -> float:
    """Not below the spectral norm of U'U - 1, for float64 (D, d)."""
    return 1.01 * float(np.linalg.norm(basis.T @ basis - np.eye(basis.shape[1]))) + 1e-12


def best(
    query: np.ndarray, vectors: np.ndarray, head: Head, k: int, counted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """What `exact.top` finds for one query (D,), or None where too many rows could win.

    Args:
        query: float32, finite.
        vectors: float32 (N, D), those of `head`.
        head: see there.
        k: how many.
        counted: bool (N,), the rows that may be found; all unless given.

    Returns:
        Row numbers, int64 (k,), and scores, float32 (k,), best first, ties in order of the rows.
    """
    bounds = head.bounds(query)
    if counted is not None:
        bounds[~counted] = -np.inf
    some = max(4 * k, 64)
    if some >= len(bounds):
        return None
    first = np.argpartition(bounds, len(bounds) - some)[len(bounds) - some :]
    first = first[bounds[first] > -np.inf]
    if len(first) < k:
        return None
    reached = products(query[None], vectors[first])[0]
    floor = np.partition(reached, len(reached) - k)[len(reached) - k]
    left = np.flatnonzero(bounds >= floor)
    if len(left) > _TOO_MANY * len(bounds):
        return None
    scores = products(query[None], vectors[left])[0]
    keep = np.lexsort((left, -scores))[:k]
    return left[keep], scores[keep]


def directions(vectors: np.ndarray) -> np.ndarray | None:
    """The basis to make heads with, float32 (D, d); None where no head is worth its reading.

    Tried with some of the rows, moved by half their length in random directions.
    """
    count, wide = vectors.shape
    if count < LEAST_ROWS or wide < _SHARES[0]:
        return None
    sample = np.asarray(vectors[:: -(-count // _SAMPLE)])
    axes = np.linalg.eigh((sample.T @ sample).astype(np.float64))[1][:, ::-1].astype(np.float32)
    random = np.random.default_rng(0)
    noise = random.standard_normal((_TRIALS, wide))
    noise *= 0.5 / np.linalg.norm(noise, axis=1, keepdims=True)
    asked = vectors[random.choice(count, _TRIALS, replace=False)] + noise
    asked = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
    sizes = [wide // share for share in _SHARES]
    turned = asked @ axes
    vectors = vectors[::_TRIED]
    count = len(vectors)
    scores = np.empty((_TRIALS, count), np.float32)
    bounds = {size: np.empty((_TRIALS, count), np.float32) for size in sizes}
    for start in range(0, count, _BLOCK):
        part = np.asarray(vectors[start : start + _BLOCK])
        at = slice(start, start + len(part))
        scores[:, at] = asked @ part.T
        heads = part @ axes[:, : sizes[-1]]
        squares = np.einsum("nd,nd->n", part, part)
        for size, bound in bounds.items():
            head = heads[:, :size]
            tails = np.sqrt(np.maximum(squares - np.einsum("nd,nd->n", head, head), 0))
            rest = np.linalg.norm(turned[:, size:], axis=1)
            bound[:, at] = turned[:, :size] @ head.T + rest[:, None] * tails
    floor = np.partition(scores, count - _NEAREST, axis=1)[:, count - _NEAREST]
    for size, bound in bounds.items():
        if np.median((bound >= floor[:, None]).mean(axis=1)) <= _PROMISING:
            return np.ascontiguousarray(axes[:, :size])
    return None


def heads(
    vectors: np.ndarray, basis: np.ndarray, longest: Callable[[float], None]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Heads, float32 (B, d), and tails, float32 (B,), block by block; `longest` hears lengths."""
    wide, size = basis.shape
    skew = _skew(basis.astype(np.float64))
    error = 1.05 * np.sqrt(size) * (wide + 2) * _U
    for start in range(0, len(vectors), _BLOCK):
        part = np.asarray(vectors[start : start + _BLOCK])
        head = part @ basis
        squares = np.add.reduce(np.square(part, dtype=np.float64), axis=1)
        lengths = np.sqrt(squares)
        longest(1.000001 * float(lengths.max()))
        inner = np.sqrt(np.add.reduce(np.square(head, dtype=np.float64), axis=1))
        inner = np.maximum(inner - error * lengths - wide * 2.0**-120, 0)
        left = np.maximum(squares * (1 + 1e-12) - (1 - skew) * inner**2, 0)
        yield head, np.nextafter(np.sqrt(left).astype(np.float32), np.float32(np.inf))
