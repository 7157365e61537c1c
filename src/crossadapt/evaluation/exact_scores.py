"""The score of a pair, independent of how a matrix product is cut, and the best own item.

The score is the dot product of the two float32 rows summed in float64 and rounded to float32. It
depends on the two rows alone: not on where they stand, the block, the number of threads or the
processor's matrix library. So equal rows tie, wherever they are.
"""

from __future__ import annotations

import numpy as np

from crossadapt.errors import UserError
from crossadapt.parallel import spread

_PAIRS = 128
"""Pairs multiplied at once: their rows stay in the processor's cache."""
_SHARE = 16 * _PAIRS
"""Pairs that one thread scores with the same piece of memory."""
_MANY = 4096
"""Pairs of a group above which a matrix product finds them faster than one by one."""
_HELD = 2**20


def pair_scores(
    left: np.ndarray, right: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Scores, float32 (P,), of ``left[rows]`` with ``right[columns]``, pair by pair."""

    found = np.empty(len(rows), np.float32)

    def some(first: int) -> None:
        last = min(first + _SHARE, len(rows))
        held = np.empty((min(_PAIRS, len(rows)), left.shape[1]))
        for start in range(first, last, _PAIRS):
            part = slice(start, min(start + _PAIRS, last))
            product = held[: part.stop - start]
            product[...] = left[rows[part]]
            # Products of two float32 are exact in float64.
            product *= right[columns[part]]
            found[part] = np.add.reduce(product, axis=1)

    spread(some, range(0, len(rows), _SHARE))
    return found


def block_scores(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The same scores of all rows (A, D) with all columns (B, D), float32 (A, B).

    By a product in float64. Its sums come in another order than those of `pair_scores`; where that
    could show after rounding, the pair is computed by itself.
    """
    product = left.astype(np.float64) @ right.T.astype(np.float64)
    slack = 4.0 * left.shape[1] * 2.0**-53 * norms(left)[:, None] * norms(right).max()
    found, other = (product - slack).astype(np.float32), (product + slack).astype(np.float32)
    unclear = np.nonzero(found != other)
    found[unclear] = pair_scores(left, right, *unclear)
    return found


def norms(matrix: np.ndarray) -> np.ndarray:
    """Lengths of the rows, float64 (N,), a little above the true ones."""
    squares = np.einsum("nd,nd->n", matrix, matrix).astype(np.float64)
    width = matrix.shape[1]
    # What the float32 sum may have rounded off, or lost where squares underflow.
    return np.sqrt(squares * (1 + width * 2.0**-23) + width * 2.0**-125)


class Best:
    """The best own item of each row (Q,): its score, and the number of one that has it."""

    def __init__(self, count: int) -> None:
        self.score = np.full(count, -np.inf, np.float32)
        self.item = np.zeros(count, np.int64)

    def add(self, rows: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
        """Take note of own pairs."""
        np.maximum.at(self.score, rows, scores)
        reached = scores == self.score[rows]
        self.item[rows[reached]] = items[reached]


def best_own(
    left: np.ndarray, right: np.ndarray, left_codes: np.ndarray, right_codes: np.ndarray
) -> tuple[Best, Best]:
    """The best own column of each row and the best own row of each column."""
    rows, columns = Best(len(left)), Best(len(right))
    order, first, count = positives(left_codes, right_codes, needed=False)
    alone = np.bincount(left_codes, minlength=int(right_codes.max()) + 1)
    few = count * alone[left_codes] <= _MANY
    asked = np.flatnonzero(few & (count > 0))
    ends = np.cumsum(count[asked])
    for part in np.split(asked, np.flatnonzero(np.diff(ends // _HELD)) + 1):
        row = np.repeat(part, count[part])
        start = np.cumsum(count[part]) - count[part]
        offset = np.arange(len(row)) - np.repeat(start, count[part])
        column = order[np.repeat(first[part], count[part]) + offset]
        found = pair_scores(left, right, row, column)
        rows.add(row, column, found)
        columns.add(column, row, found)
    for code in np.unique(left_codes[~few]):
        members, own = np.flatnonzero(left_codes == code), np.flatnonzero(right_codes == code)
        step = max(1, _HELD // len(own))
        for at in range(0, len(members), step):
            part = members[at : at + step]
            scores = block_scores(left[part], right[own])
            for best, mine, others, found in (
                (rows, part, own, scores),
                (columns, own, part, scores.T),
            ):
                place = found.argmax(axis=1)
                best.add(mine, others[place], found[np.arange(len(found)), place])
    return rows, columns


def positives(
    query_codes: np.ndarray, gallery_codes: np.ndarray, *, needed: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each query's positives are: (columns sorted by group, first (Q,), how many (Q,)).

    Raises:
        UserError: a query has none, and it is `needed`.
    """
    size = int(max(query_codes.max(), gallery_codes.max())) + 1
    members = np.bincount(gallery_codes, minlength=size)
    lonely = np.flatnonzero(members[query_codes] == 0)
    if len(lonely) and needed:
        raise UserError(
            f"{len(lonely)} of {len(query_codes)} queries have no item of their group in the "
            "gallery, so they have no rank",
            where=f"first such query: row {int(lonely[0])}",
            fix="leave those queries out, or check that both sides name groups the same way "
            "(the integer 1 and the string '1' are different names)",
        )
    order = np.argsort(gallery_codes, kind="stable")
    first = np.cumsum(members) - members
    return order, first[query_codes], members[query_codes]
