"""The arithmetic of `calibration`: z scores against null queries, and their best finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TAIL = 0.01
_LEAST_SIGMA = 1e-6


@dataclass(frozen=True)
class Nulls:
    """Null queries of one kind."""

    vectors: np.ndarray
    """float32 (M, D), unit length."""
    own: np.ndarray | None = None
    """Row of the sample (M,) that is part of each null query and does not count for it."""


def statistics(
    scores: np.ndarray, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and deviation of every column of `scores` (M, n), and the centred scores.

    `own` (M,) names one column per row that is left out of it, -1 for none; it is centred to
    minus infinity so that it is never the best.
    """
    rows = np.flatnonzero(np.full(0, 0) if own is None else own >= 0)
    columns = rows if own is None else own[rows]
    weight = np.ones_like(scores)
    weight[rows, columns] = 0
    count = np.maximum(weight.sum(0), 1)
    mean = (scores * weight).sum(0) / count
    centred = scores - mean
    sigma = np.sqrt((centred**2 * weight).sum(0) / count)
    centred[rows, columns] = -np.inf
    return mean, np.maximum(sigma, _LEAST_SIGMA), centred


def best_finds(nulls: Nulls, rows: np.ndarray, total: int) -> np.ndarray:
    """The best z of every null query among `rows` (n, D), sorted, for a collection of `total`.

    Each null query is left out of the statistics it is held against. With mean and deviation over
    all M, that is ``z sqrt(M / (M - 1)) / sqrt(1 - z^2 / (M - 1))``, which grows with z, so the
    maximum is taken first. Where `rows` are a sample, the maximum over all is extrapolated with a
    Gaussian tail, in which squares of z have exponential excesses: ``max^2 + beta log(total / n)``
    with beta the mean excess of the largest 1 % of squares. (With an exponential tail of z itself
    it came out too high, on clustered as on uniform vectors.)
    """
    count, size = len(nulls.vectors), len(rows)
    if not size:
        return np.full(count, -np.inf)
    _, sigma, centred = statistics(nulls.vectors @ rows.T, nulls.own)
    z = centred / sigma
    if size == total:
        return np.sort(_left_out(z.max(1), count))
    tail = max(10, round(_TAIL * size))
    largest = _left_out(-np.sort(np.partition(-z, tail, axis=1)[:, : tail + 1], axis=1), count)
    squares = np.maximum(largest, 0) ** 2
    excess = squares[:, :tail].mean(1) - squares[:, tail]
    return np.sort(np.sqrt(squares[:, 0] + excess * np.log(total / size)))


def _left_out(z: np.ndarray, count: int) -> np.ndarray:
    remaining = np.maximum(1 - z**2 / (count - 1), 1e-6)
    return z * np.sqrt(count / (count - 1)) / np.sqrt(remaining)
