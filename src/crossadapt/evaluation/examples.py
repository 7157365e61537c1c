"""Which queries to show: gains, typical cases, losses and failures, chosen by rule and not by hand.

From the ranks before and after adaptation:

* *improved* — the largest drops of log-rank (100 → 2 beats 1000 → 500);
* *worsened* — the largest rises of log-rank;
* *failure* — the worst ranks after adaptation;
* *typical* — ranks after adaptation nearest to the median over all queries, spread evenly over
  the queries that share the nearest rank, so that the first items of a file do not stand for all.

A group appears once; ties are broken by the order of the queries; nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crossadapt.errors import UserError
from crossadapt.evaluation.inputs import (
    Features,
    Groups,
    as_matrix,
    as_names,
    encode_groups,
)
from crossadapt.evaluation.ranks import Similarity, prepare, rank_codes

Kind = Literal["improved", "typical", "worsened", "failure"]
RowScores = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Hit:
    """One result: which image (row of the image features), its score, and whether it is right."""

    image: int
    score: float
    correct: bool


@dataclass(frozen=True)
class Example:
    """A text query with its best images before and after; ranks are averages, from 1."""

    kind: Kind
    query: int
    text: str
    answer: int
    """An image of the query's own group: the one ranked best after adaptation."""
    rank_before: float
    rank_after: float
    before: tuple[Hit, ...]
    after: tuple[Hit, ...]


def retrieve_examples(
    before: tuple[Features, Features],
    after: tuple[Features, Features],
    image_groups: Groups,
    text_groups: Groups,
    texts: Sequence[str],
    *,
    top: int = 5,
    improved: int = 6,
    typical: int = 4,
    worsened: int = 2,
    failures: int = 4,
    similarity: Similarity = "cosine",
) -> list[Example]:
    """Pick text queries to show, with their `top` images before and after adaptation.

    Args:
        before: (image features (N, D), text features (M, D)) of the frozen model.
        after: the same of the adapted model; the width may differ, the rows may not.
        image_groups: N group names.
        text_groups: M group names.
        texts: the M captions.
        top: images per query.
        improved: how many gains at most; as with the other counts, fewer when there are fewer.
        typical: how many cases near the median.
        worsened: how many losses at most.
        failures: how many of the worst ranks (above 1) after adaptation.
        similarity: as in `rank`.
    """
    if top < 1:
        raise UserError("top must be at least 1", where=f"top={top}")
    old = [as_matrix(f, f"{n} features before") for f, n in zip(before, _SIDES, strict=True)]
    new = [as_matrix(f, f"{n} features after") for f, n in zip(after, _SIDES, strict=True)]
    if [len(m) for m in old] != [len(m) for m in new] or len(texts) != len(old[1]):
        raise UserError(
            "before, after and texts do not describe the same items",
            where=f"images {len(old[0])} and {len(new[0])}, texts {len(old[1])} "
            f"and {len(new[1])}, captions {len(texts)}",
            fix="encode the same items in the same order twice",
        )
    image_codes, text_codes = encode_groups(
        as_names(image_groups, len(old[0]), "image groups"),
        as_names(text_groups, len(old[1]), "text groups"),
    )
    was = rank_codes(old[1], old[0], text_codes, image_codes, similarity).average
    now = rank_codes(new[1], new[0], text_codes, image_codes, similarity).average
    chosen = _choose(was, now, text_codes, improved, typical, worsened, failures)
    scores = (lambda r: _products(old, r, similarity), lambda r: _products(new, r, similarity))
    return _show(chosen, was, now, scores, image_codes, text_codes, texts, top)


def choose_examples(
    ranks: tuple[np.ndarray, np.ndarray],
    scores: tuple[RowScores, RowScores],
    image_groups: Groups,
    text_groups: Groups,
    texts: Sequence[str],
    *,
    top: int = 5,
) -> list[Example]:
    """`retrieve_examples` for a similarity that is no product of two vectors.

    Args:
        ranks: average rank of each text query before and after, (M,) each.
        scores: before and after, the scores (n, N) of some text queries, given their numbers (n,).
        image_groups: N group names.
        text_groups: M group names.
        texts: the M captions.
        top: images per query.
    """
    image_codes, text_codes = encode_groups(
        as_names(image_groups, len(image_groups), "image groups"),
        as_names(text_groups, len(texts), "text groups"),
    )
    chosen = _choose(*ranks, text_codes, improved=6, typical=4, worsened=2, failures=4)
    return _show(chosen, *ranks, scores, image_codes, text_codes, texts, top)


def _show(
    chosen: list[tuple[Kind, int]],
    was: np.ndarray,
    now: np.ndarray,
    scores: tuple[RowScores, RowScores],
    image_codes: np.ndarray,
    text_codes: np.ndarray,
    texts: Sequence[str],
    top: int,
) -> list[Example]:
    rows = np.array([query for _, query in chosen], np.int64)
    if not len(rows):
        return []
    hits_before, _ = _top(scores[0](rows), rows, text_codes, image_codes, top)
    hits_after, answers = _top(scores[1](rows), rows, text_codes, image_codes, top)
    return [
        Example(
            kind,
            query,
            str(texts[query]),
            answers[i],
            float(was[query]),
            float(now[query]),
            hits_before[i],
            hits_after[i],
        )
        for i, (kind, query) in enumerate(chosen)
    ]


_SIDES = ("image", "text")


def _choose(
    was: np.ndarray,
    now: np.ndarray,
    codes: np.ndarray,
    improved: int,
    typical: int,
    worsened: int,
    failures: int,
) -> list[tuple[Kind, int]]:
    """(kind, query) in the order shown."""
    gain = np.log(was) - np.log(now)
    used: set[int] = set()

    def take(kind: Kind, order: Iterable[int], count: int) -> list[tuple[Kind, int]]:
        found: list[tuple[Kind, int]] = []
        for query in order:
            if len(found) >= count:
                break
            if (code := int(codes[query])) not in used:
                used.add(code)
                found.append((kind, int(query)))
        return found

    by_gain = np.argsort(-gain, kind="stable")
    by_loss = np.argsort(gain, kind="stable")
    by_rank = np.argsort(-now, kind="stable")
    # Failures choose first: a gain from 900 to 400 is shown as the failure that it still is.
    bad = take("failure", by_rank[now[by_rank] > 1], failures)
    up = take("improved", by_gain[gain[by_gain] > 0], improved)
    down = take("worsened", by_loss[gain[by_loss] < 0], worsened)
    distance = np.abs(np.log(now) - np.log(np.median(now)))
    return up + take("typical", _spread(distance, codes, used, typical), typical) + down + bad


def _spread(distance: np.ndarray, codes: np.ndarray, used: set[int], count: int) -> list[int]:
    """Queries by `distance`, those at the smallest one reordered to an even spread."""
    order = [int(q) for q in np.argsort(distance, kind="stable") if int(codes[q]) not in used]
    if not order or count < 1:
        return []
    level = sum(1 for q in order if distance[q] == distance[order[0]])
    picks = sorted({int(i) for i in np.linspace(0, level - 1, min(count, level))})
    chosen = [order[i] for i in picks]
    return chosen + [q for q in order if q not in set(chosen)]


def _products(features: list[np.ndarray], rows: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Scores (n, N) of the texts in `rows` with all images."""
    images, texts = features
    queries, unique, inverse = prepare(texts[rows], images, similarity)
    scores = queries @ unique.T
    return scores if inverse is None else scores[:, inverse]


def _top(
    scores: np.ndarray,
    rows: np.ndarray,
    text_codes: np.ndarray,
    image_codes: np.ndarray,
    top: int,
) -> tuple[list[tuple[Hit, ...]], list[int]]:
    """Best images of each query in `rows`, equal scores in file order, and its best own image."""
    hits, answers = [], []
    for row, line in zip(rows, scores, strict=True):
        own = image_codes == text_codes[row]
        best = np.argsort(-line, kind="stable")[:top]
        hits.append(tuple(Hit(int(i), float(line[i]), bool(own[i])) for i in best))
        answers.append(int(np.argmax(np.where(own, line, -np.inf))))
    return hits, answers
