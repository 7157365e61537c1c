"""Ranks of both directions out of one matrix product, counted while it is made.

The product of all rows with all columns is made in float32, tile by tile, and every thread holds
one tile. It is compared with the thresholds of its rows and, for the other direction, with those of
its columns; what is counted is bits, there is no sort. Each element costs four comparisons, a few
per cent of the 2 D operations that made it. A thread both multiplies and counts: while one waits
for memory the other computes, and nobody waits for the slowest part of a product.

Why the counts are exact though float32 sums depend on their order: a score x~ of the product and
the pair's own score x (`exact_scores`: float64, rounded once) differ by at most

    e = (D + 2) u |q| |g| / (1 - D u),    u = 2^-24

for any order of the D additions, with or without fused multiply-add (Higham, *Accuracy and
Stability of Numerical Algorithms*, 3.5: the sum of |q_i g_i| is at most |q| |g|). So x~ > best + e
proves x > best, x~ < best - e proves x < best, and only the pairs between, a few in a hundred
thousand, are computed by themselves. In bfloat16 the same holds with u = 2^-9 for the rounding of
each input, an e of 0.004 for unit vectors; 128 times as many pairs would be undecided, which costs
more than the faster product saves.
"""

from __future__ import annotations

import itertools
import math
import threading

import numpy as np

from crossadapt.evaluation.exact_scores import Best, block_scores, norms, pair_scores
from crossadapt.parallel import stream, threads

_STRIP = 32
"""Rows compared at once: with all columns of a tile they stay in the processor's cache."""
_PART = 128
"""Rows counted in bytes, a byte per column; at most 255."""
_ROWS = 1280
"""Rows of a tile at most: of fewer, each product prepares its columns for less work."""
_COLUMNS = 5120
"""Columns of a tile: numpy compares long rows nearly twice as fast as rows of a quarter of that,
and the product is as fast as that of the whole matrices."""
_RUN = 1280
"""Comparisons of a row that are added in eight bytes, one word after another; at most 8 * 255."""
_LEAST = 32
"""Rows and columns that a tile has at least, whatever `block` says."""


class _Side:
    """One direction: thresholds of its queries (Q,), and how many items lie above and level."""

    def __init__(
        self, queries: np.ndarray, items: np.ndarray, codes: np.ndarray, others: np.ndarray,
        best: Best, lengths: np.ndarray, longest: float,
    ) -> None:  # fmt: skip
        self.queries, self.items, self.codes, self.others = queries, items, codes, others
        self.best = best
        width = queries.shape[1]
        # 1.02 covers 1 - D u up to D = 300,000; the last term is for products that underflow.
        error = 1.02 * (width + 2) * 2.0**-24 * lengths * longest
        error += width * 2.0**-125
        exact = best.score.astype(np.float64)
        self.low = np.nextafter((exact - error).astype(np.float32), np.float32(-np.inf))
        self.high = np.nextafter((exact + error).astype(np.float32), np.float32(np.inf))
        self.above = np.zeros(len(queries), np.int64)
        self.level = np.zeros(len(queries), np.int64)
        self._lock = threading.Lock()

    def settle(
        self, scores: np.ndarray, surely: np.ndarray, maybe: np.ndarray, mine: slice, theirs: slice
    ) -> None:
        """Count one tile, seen with this side's queries in rows; called by several threads.

        Args:
            scores: float32 (A, B).
            surely, maybe: how many scores are above `high`, and at or above `low`, (A,).
            mine, theirs: the queries and items of the tile.
        """
        with self._lock:
            self.above[mine] += surely
        at = self.best.item[mine]
        # The best own item lies between the thresholds by construction; look where more does.
        expected = (at >= theirs.start) & (at < theirs.stop)
        open_rows = np.flatnonzero(maybe - surely > expected)
        if not len(open_rows):
            return
        asked = open_rows + mine.start
        some = scores[open_rows]
        between = (some >= self.low[asked, None]) & (some <= self.high[asked, None])
        if 32 * np.count_nonzero(between) > some.size:
            exact = block_scores(self.queries[asked], self.items[theirs])
            between &= self.codes[asked, None] != self.others[theirs]
            best = self.best.score[asked, None]
            above = np.count_nonzero(between & (exact > best), axis=1)
            level = np.count_nonzero(between & (exact == best), axis=1)
            with self._lock:
                self.above[asked] += above
                self.level[asked] += level
            return
        # Several times as fast as `nonzero` of two dimensions.
        row, column = np.divmod(np.flatnonzero(between), between.shape[1])
        query, item = asked[row], column + theirs.start
        other = self.codes[query] != self.others[item]
        query, item = query[other], item[other]
        exact, best = pair_scores(self.queries, self.items, query, item), self.best.score[query]
        with self._lock:
            np.add.at(self.above, query, exact > best)
            np.add.at(self.level, query, exact == best)


def count(
    rows: np.ndarray,
    columns: np.ndarray,
    row_codes: np.ndarray,
    column_codes: np.ndarray,
    own: tuple[Best, Best],
    block: int,
    *,
    both: bool,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Optimistic and pessimistic ranks, int64, of the rows and, with `both`, of the columns.

    Args:
        rows: float32 (Q, D).
        columns: float32 (M, D).
        row_codes: group numbers (Q,).
        column_codes: group numbers (M,).
        own: what `best_own` found.
        block: scores held at once by all threads, at least a small tile each.
        both: every column has an own row too, and its rank is asked for.
    """
    lengths, others = norms(rows), norms(columns)
    first = _Side(rows, columns, row_codes, column_codes, own[0], lengths, others.max())
    second = None
    if both:
        second = _Side(columns, rows, column_codes, row_codes, own[1], others, lengths.max())
    block //= threads()
    wide = max(_LEAST, min(_COLUMNS, 2 * math.isqrt(block), block // _LEAST))
    wide = min(wide, len(columns))
    tall = min(max(_LEAST, block // wide), len(rows), _ROWS)
    # As many tiles for every thread, so that they end together.
    turns = -(-len(rows) // (tall * threads()))
    tall = min(tall, max(_LEAST, -(-len(rows) // (turns * threads()))))
    own_memory = threading.local()

    def tile(corner: tuple[int, int]) -> None:
        left, top = corner
        mine = slice(top, min(top + tall, len(rows)))
        theirs = slice(left, min(left + wide, len(columns)))
        shape = (mine.stop - mine.start, theirs.stop - theirs.start)
        if not hasattr(own_memory, "scores"):
            own_memory.scores = np.empty(tall * wide, np.float32)
        held = own_memory.scores[: shape[0] * shape[1]].reshape(shape)
        scores = np.matmul(rows[mine], columns[theirs].T, out=held)
        _count_tile(scores, mine, theirs, first, second)

    corners = itertools.product(range(0, len(columns), wide), range(0, len(rows), tall))
    for _ in stream(tile, corners):
        pass
    found = [side for side in (first, second) if side is not None]
    return [(1 + side.above, 1 + side.above + side.level) for side in found]


def _count_tile(
    scores: np.ndarray, mine: slice, theirs: slice, first: _Side, second: _Side | None
) -> None:
    """Count one tile for both sides."""
    wide = scores.shape[1]
    in_rows = np.empty((2, len(scores)), np.int64)
    in_columns = np.zeros((2, wide), np.int64)
    # Each byte is one comparison. What lies behind the columns stays 0.
    truth = np.zeros((min(_STRIP, len(scores)), -(-wide // _RUN) * _RUN), bool)
    for top in range(0, len(scores), _PART):
        few = np.zeros((2, wide), np.uint8)
        for at in range(top, min(top + _PART, len(scores)), _STRIP):
            some = scores[at : at + _STRIP]
            held = truth[: len(some)]
            inside = held[:, :wide]
            place = slice(at, at + len(some))
            own = slice(mine.start + place.start, mine.start + place.stop)
            np.greater(some, first.high[own, None], out=inside)
            in_rows[0, place] = _in_rows(held)
            np.greater_equal(some, first.low[own, None], out=inside)
            in_rows[1, place] = _in_rows(held)
            if second is not None:
                np.greater(some, second.high[theirs], out=inside)
                few[0] += _in_columns(inside)
                np.greater_equal(some, second.low[theirs], out=inside)
                few[1] += _in_columns(inside)
        in_columns += few
    first.settle(scores, in_rows[0], in_rows[1], mine, theirs)
    if second is not None:
        second.settle(scores.T, in_columns[0], in_columns[1], theirs, mine)


def _in_rows(truth: np.ndarray) -> np.ndarray:
    """How many of each row (A, n * _RUN) hold; eight bytes are added at once, none overflows."""
    runs = truth.view(np.uint64).reshape(len(truth), -1, _RUN // 8)
    eight = np.add.reduce(runs, axis=2)
    return eight.view(np.uint8).sum(axis=1, dtype=np.int64)


def _in_columns(truth: np.ndarray) -> np.ndarray:
    """How many of each column hold, uint8, in at most 255 rows."""
    return np.add.reduce(truth.view(np.uint8), axis=0, dtype=np.uint8)
