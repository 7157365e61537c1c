"""Ranks of queries against a gallery, without a sort and without the full matrix.

For a query q whose positives P(q) are the gallery items of its group, and ``best`` the highest
score among them (any-hit: one right answer is enough)::

    optimistic(q)  = 1 + #{ g not in P(q) : score(q, g) >  best }
    pessimistic(q) = 1 + #{ g not in P(q) : score(q, g) >= best }
    average(q)     = (optimistic(q) + pessimistic(q)) / 2

Ranks start at 1. No own item scores above ``best``, so `optimistic` is also the position of the
best own item among *all* items: for five captions per image this is the published image-to-text
rule, the minimum over the own captions of their ranks among all captions.

Equality is exact, so a score must not depend on how the product was cut: it is defined pair by
pair in `exact_scores`, and `counting` gets it out of a float32 product, for both directions at
once. Scores that are no product of two vectors, and galleries of groups, are ranked in stripes
(`rank_stripes`); there ``best`` is read out of the very scores it is compared with, and gallery
rows that are bitwise equal are scored once and share the value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crossadapt.errors import UserError
from crossadapt.evaluation.counting import count
from crossadapt.evaluation.exact_scores import best_own, positives
from crossadapt.evaluation.inputs import (
    Features,
    Groups,
    as_matrix,
    as_names,
    check_widths,
    encode_groups,
    unit_rows,
)

Similarity = Literal["cosine", "dot"]
DEFAULT_BLOCK = 4096 * 5120
"""Scores of a product held at once: 80 MiB of float32. Each call of the matrix library prepares
its factors anew and waits for its threads, so fewer and larger ones are faster."""
STRIPE_BLOCK = 2048 * 1280
"""Scores asked for at once where they are no product."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """Rank of the best positive of each query, from 1; three arrays of shape (Q,).

    `optimistic` (int64) wins every tie, `pessimistic` (int64) loses every tie, `average`
    (float64) is their mean and the one that metrics use.
    """

    optimistic: np.ndarray
    pessimistic: np.ndarray

    @property
    def average(self) -> np.ndarray:
        """Mean of the optimistic and the pessimistic rank, float64 (Q,)."""
        return (self.optimistic + self.pessimistic) / 2

    def __len__(self) -> int:
        return len(self.optimistic)


def rank(
    query: Features,
    gallery: Features,
    query_groups: Groups,
    gallery_groups: Groups,
    *,
    similarity: Similarity = "cosine",
    block: int = DEFAULT_BLOCK,
) -> Ranks:
    """Rank the best positive of every query among the gallery.

    Args:
        query: (Q, D) features, torch or numpy, any float type; compared in float32.
        gallery: (M, D) features.
        query_groups: Q group names.
        gallery_groups: M group names; a query's positives are the items of its own group.
        similarity: "cosine" scales rows to length one first; "dot" does not.
        block: scores held at once; a tile of 32 x 32 is the least, whatever `block` says.

    Returns:
        `Ranks` in the order of the queries.

    Raises:
        UserError: bad features or groups (see `inputs`), or a query without any positive.
    """
    queries = as_matrix(query, "query features")
    items = as_matrix(gallery, "gallery features")
    query_codes, gallery_codes = encode_groups(
        as_names(query_groups, len(queries), "query groups"),
        as_names(gallery_groups, len(items), "gallery groups"),
    )
    return rank_codes(queries, items, query_codes, gallery_codes, similarity, block)


def rank_codes(
    queries: np.ndarray,
    items: np.ndarray,
    query_codes: np.ndarray,
    gallery_codes: np.ndarray,
    similarity: Similarity = "cosine",
    block: int = DEFAULT_BLOCK,
    grouped: bool = False,
) -> Ranks:
    """`rank` for float32 matrices already checked and groups already numbered.

    `grouped` is explained at `rank_stripes`.
    """
    if not grouped:
        positives(query_codes, gallery_codes)
        return _counted(queries, items, query_codes, gallery_codes, similarity, block, False)[0]
    queries, unique, inverse = prepare(queries, items, similarity)

    def score(stripe: slice) -> np.ndarray:
        scores = queries[stripe] @ unique.T
        return scores if inverse is None else scores[:, inverse]

    return rank_stripes(score, query_codes, gallery_codes, block, grouped)


def rank_both(
    queries: np.ndarray,
    items: np.ndarray,
    query_codes: np.ndarray,
    gallery_codes: np.ndarray,
    similarity: Similarity = "cosine",
    block: int = DEFAULT_BLOCK,
) -> tuple[Ranks, Ranks]:
    """`rank_codes` of the queries among the items and of the items among the queries.

    One product serves both.
    """
    positives(query_codes, gallery_codes)
    positives(gallery_codes, query_codes)
    forward, backward = _counted(
        queries, items, query_codes, gallery_codes, similarity, block, True
    )
    return forward, backward


def _counted(
    queries: np.ndarray, items: np.ndarray, query_codes: np.ndarray, gallery_codes: np.ndarray,
    similarity: Similarity, block: int, both: bool,
) -> list[Ranks]:  # fmt: skip
    _check_block(block)
    queries, items = _comparable(queries, items, similarity)
    own = best_own(queries, items, query_codes, gallery_codes)
    found = count(queries, items, query_codes, gallery_codes, own, block, both=both)
    return [Ranks(*side) for side in found]


def _check_block(block: int) -> None:
    if block < 1:
        raise UserError(
            "block must be at least 1",
            where=f"block={block}",
            fix=f"leave it out to hold {DEFAULT_BLOCK} scores",
        )


def rank_stripes(
    score: Callable[[slice], np.ndarray],
    query_codes: np.ndarray,
    gallery_codes: np.ndarray,
    block: int = STRIPE_BLOCK,
    grouped: bool = False,
) -> Ranks:
    """`rank` for scores of any kind.

    Args:
        score: gives the scores (stripe, M) of a stripe of queries with the whole gallery.
        query_codes: group numbers (Q,).
        gallery_codes: group numbers (M,).
        block: scores asked for at once; the whole gallery of one query is the least.
        grouped: the gallery is one item per group, with the best score of its members.
    """
    _check_block(block)
    if grouped:
        by_group = np.argsort(gallery_codes, kind="stable")
        groups, edges = np.unique(gallery_codes[by_group], return_index=True)
        single = score

        def score(stripe: slice) -> np.ndarray:
            return np.maximum.reduceat(single(stripe)[:, by_group], edges, axis=1)

        gallery_codes = groups
    order, starts, counts = positives(query_codes, gallery_codes)
    optimistic = np.empty(len(query_codes), np.int64)
    pessimistic = np.empty(len(query_codes), np.int64)
    rows = max(1, block // len(gallery_codes))
    for start in range(0, len(query_codes), rows):
        stripe = slice(start, min(start + rows, len(query_codes)))
        scores = score(stripe)
        size = counts[stripe]
        first = np.cumsum(size) - size
        row = np.repeat(np.arange(len(size)), size)
        column = order[np.repeat(starts[stripe] - first, size) + np.arange(size.sum())]
        own = scores[row, column]
        best = np.maximum.reduceat(own, first)
        own_ties = np.add.reduceat((own == best[row]).astype(np.int64), first)
        above = np.count_nonzero(scores > best[:, None], axis=1)
        level = np.count_nonzero(scores == best[:, None], axis=1)
        optimistic[stripe] = 1 + above
        pessimistic[stripe] = 1 + above + level - own_ties
    return Ranks(optimistic, pessimistic)


def prepare(
    queries: np.ndarray, items: np.ndarray, similarity: Similarity
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Make both sides ready for a product: (queries, distinct items, columns per item or None)."""
    unique, inverse = _distinct(items)
    return *_comparable(queries, unique, similarity), inverse


def _comparable(
    queries: np.ndarray, items: np.ndarray, similarity: Similarity
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides ready for a product; raises `UserError` where they are not."""
    check_widths(queries, items, "query and gallery features")
    if similarity == "cosine":
        return unit_rows(queries, "query features"), unit_rows(items, "gallery features")
    if similarity != "dot":
        raise UserError(f"unknown similarity {similarity!r}", fix="use 'cosine' or 'dot'")
    with np.errstate(over="ignore"):
        limit = float(np.abs(queries).max()) * float(np.abs(items).max()) * queries.shape[1]
    if limit > float(np.finfo(np.float32).max):
        raise UserError(
            "the features are too large for a float32 dot product",
            where=f"a score could reach {limit:.1e}",
            fix="scale them, or rank by similarity='cosine'",
        )
    return queries, items


def _distinct(items: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Drop repeated rows: (unique rows, index of each item's row), or (items, None)."""
    items = items + np.float32(0)  # -0.0 becomes 0.0, so equal values are equal bytes
    seen: dict[bytes, int] = {}
    inverse = np.empty(len(items), np.int64)
    keep: list[int] = []
    for index, row in enumerate(items):
        # A digest instead of the row itself keeps the table small for wide features.
        key = hashlib.blake2b(row.data, digest_size=16).digest()
        inverse[index] = seen.setdefault(key, len(keep))
        if inverse[index] == len(keep):
            keep.append(index)
    if len(keep) == len(items):
        return items, None
    return np.ascontiguousarray(items[keep]), inverse
