"""How sure the numbers are: bootstrap over queries, paired before/after tests, spread over seeds.

Captions of one image are not independent, so whole *groups* are drawn and flipped, never single
queries. Three questions, three tools:

* `metric_intervals` — how far would this score move on other test items? Percentile bootstrap.
* `paired_tests` — did the same test items get better? The interval of the difference from the same
  bootstrap draws on both sides, and a sign-flip permutation test: under the null hypothesis before
  and after may be exchanged within each group.
* `seed_interval` — how far would this score move with other seeds? Student's t over the runs.

Everything is deterministic for a given `seed`. With all groups right (or all wrong) a bootstrap
interval has no width: it cannot know about failures it has never seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crossadapt.errors import UserError, did_you_mean
from crossadapt.evaluation.inputs import Groups, as_names, encode_groups
from crossadapt.evaluation.metrics import DIRECTIONS, METRIC_NAMES, RetrievalResult
from crossadapt.evaluation.student import student_t

MEAN_METRICS = tuple(name for name in METRIC_NAMES if not name.endswith("median_rank"))
"""Metrics that are means over queries, or sums of such; medians are left out."""
_CUTOFFS = {"r1": 1, "r5": 5, "r10": 10}


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `low` and `high` are None when one value is all there is."""

    estimate: float
    low: float | None
    high: float | None
    confidence: float
    method: str
    count: int
    """Independent units behind it: groups for a bootstrap, runs for seeds."""

    def format(self, digits: int = 1) -> str:
        """``31.4 [29.8, 33.1]``, or the estimate alone."""
        text = f"{self.estimate:.{digits}f}"
        if self.low is None or self.high is None:
            return text
        return f"{text} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class PairedTest:
    """Before against after on the same queries; `difference` is after minus before."""

    metric: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided sign-flip permutation test; never below 1 / (permutations + 1)."""
    confidence: float
    groups: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    groups: Groups,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the mean of `values` (Q,), drawing whole `groups` (Q names)."""
    array = np.asarray(values, np.float64)
    [codes] = encode_groups(as_names(groups, len(array), "groups"))
    table = _Table([(array, codes)])
    draws = table.bootstrap(resamples, seed)[:, 0]
    return _interval(float(array.mean()), draws, confidence, table.groups)


def metric_intervals(
    result: RetrievalResult,
    *,
    metrics: Sequence[str] = MEAN_METRICS,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Bootstrap intervals of several metrics of one result.

    Under a protocol with folds the draws pool the queries of all folds; estimates are the
    protocol's own.

    Raises:
        UserError: the result carries no ranks per query, fewer than two groups, or a median
            metric (not a mean over queries).
    """
    table, columns = _metric_table(result, metrics)
    draws = table.bootstrap(resamples, seed)
    return {
        name: _interval(result.metric(name), draws[:, at].sum(1), confidence, table.groups)
        for name, at in columns.items()
    }


def paired_tests(
    before: RetrievalResult,
    after: RetrievalResult,
    *,
    metrics: Sequence[str] = MEAN_METRICS,
    resamples: int = 2000,
    permutations: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, PairedTest]:
    """Compare two results on the same queries, one `PairedTest` per metric.

    Raises:
        UserError: different protocols or queries, or the reasons of `metric_intervals`.
    """
    if before.protocol != after.protocol:
        raise UserError(
            "before and after were measured under different protocols",
            where=f"{before.protocol} and {after.protocol}",
            fix="evaluate both under one protocol",
        )
    first, columns = _metric_table(before, metrics)
    second, _ = _metric_table(after, metrics)
    if not first.same_queries(second):
        raise UserError(
            "before and after were not measured on the same queries",
            where=f"{before.texts} texts and {before.images} images, against "
            f"{after.texts} and {after.images}",
            fix="evaluate both on the same items in the same order",
        )
    draws = second.bootstrap(resamples, seed) - first.bootstrap(resamples, seed)
    share = (second.sums - first.sums) / first.sizes.sum(0)
    tests = {}
    for name, at in columns.items():
        was, now = before.metric(name), after.metric(name)
        low, high = _quantiles(draws[:, at].sum(1), confidence)
        p = _sign_flip(share[:, at].sum(1), permutations, seed)
        tests[name] = PairedTest(name, was, now, now - was, low, high, p, confidence, first.groups)
    return tests


def paired_test(
    before: RetrievalResult,
    after: RetrievalResult,
    metric: str = "text_to_image.r1",
    **options: Any,
) -> PairedTest:
    """`paired_tests` for one metric."""
    return paired_tests(before, after, metrics=[metric], **options)[metric]


def paired_means(
    before: np.ndarray, after: np.ndarray, groups: Groups, *, metric: str, seed: int = 0
) -> PairedTest:
    """Compare the means of two values (Q,) of the same queries, as `paired_tests` does."""
    [codes] = encode_groups(as_names(groups, len(before), "groups"))
    table = _Table([(np.asarray(values, np.float64), codes) for values in (before, after)])
    draws = table.bootstrap(2000, seed)
    low, high = _quantiles(draws[:, 1] - draws[:, 0], 0.95)
    p = _sign_flip((table.sums[:, 1] - table.sums[:, 0]) / len(codes), 10_000, seed)
    was, now = float(np.mean(before)), float(np.mean(after))
    return PairedTest(metric, was, now, now - was, low, high, p, 0.95, table.groups)


def seed_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean over runs with Student's t interval; a single run has no interval.

    The interval is symmetric and not cut to the range of the metric.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise UserError(
            "an interval over seeds needs at least one finite value", where=repr(values)[:80]
        )
    _check_confidence(confidence)
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Interval(mean, None, None, confidence, "single run", 1)
    half = student_t(0.5 + confidence / 2, n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, confidence, "t over seeds", n)


class _Table:
    """Sums and counts per group (G, C) of C query-level quantities: all that draws need."""

    def __init__(self, components: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self.groups = 1 + max(int(codes.max()) for _, codes in components)
        if self.groups < 2:
            raise UserError(
                "an interval needs at least two groups of queries", fix="evaluate on more items"
            )
        self.codes = [codes for _, codes in components]
        self.sums = np.stack([np.bincount(c, v, self.groups) for v, c in components], 1)
        self.sizes = np.stack([np.bincount(c, minlength=self.groups) for c in self.codes], 1)

    def same_queries(self, other: _Table) -> bool:
        """Whether both tables hold the same groups for the same queries."""
        return all(np.array_equal(a, b) for a, b in zip(self.codes, other.codes, strict=True))

    def bootstrap(self, resamples: int, seed: int) -> np.ndarray:
        """Means (resamples, C) over groups drawn with replacement; same draws for one seed."""
        if resamples < 1:
            raise UserError("resamples must be at least 1", where=f"resamples={resamples}")
        rng, draws = np.random.default_rng(seed), []
        step = max(1, 2**21 // self.groups)
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            picks = rng.integers(0, self.groups, (rows, self.groups))
            picks += np.arange(rows)[:, None] * self.groups
            times = np.bincount(picks.ravel(), minlength=rows * self.groups)
            times = times.reshape(rows, self.groups).astype(np.float64)
            draws.append((times @ self.sums) / (times @ self.sizes))
        return np.concatenate(draws)


def _metric_table(
    result: RetrievalResult, metrics: Sequence[str]
) -> tuple[_Table, dict[str, list[int]]]:
    """The table of all needed quantities, and the columns whose sum is each metric."""
    if result.details is None:
        raise UserError(
            "this evaluation record has no ranks per query",
            fix="save it with to_dict(ranks=True), or evaluate again",
        )
    components: list[tuple[np.ndarray, np.ndarray]] = []
    columns: dict[str, list[int]] = {}
    for name in metrics:
        if name not in MEAN_METRICS:
            raise UserError(
                f"no interval for the metric {name!r}", fix=did_you_mean(name, MEAN_METRICS)
            )
        wanted = [name] if name != "rsum" else [f"{d}.{m}" for d in DIRECTIONS for m in _CUTOFFS]
        columns[name] = []
        for part in wanted:
            direction, _, kind = part.partition(".")
            ranks, codes = result.details[direction].ranks.average, result.details[direction].groups
            values = 100.0 * (ranks <= _CUTOFFS[kind]) if kind in _CUTOFFS else ranks
            columns[name].append(len(components))
            components.append((values, codes))
    return _Table(components), columns


def _sign_flip(differences: np.ndarray, permutations: int, seed: int) -> float:
    """Two-sided p-value of the sum of `differences` (G,) under random signs."""
    differences = differences[differences != 0]
    observed = abs(differences.sum())
    # A sum reached in another order may differ in the last bits and still count as equal.
    observed -= 1e-9 * np.abs(differences).sum()
    rng, extreme = np.random.default_rng(seed), 0
    step = max(1, 2**21 // max(1, len(differences)))
    for start in range(0, permutations, step):
        shape = (min(step, permutations - start), len(differences))
        signs = rng.integers(0, 2, shape, dtype=np.int8) * 2.0 - 1.0
        extreme += int(np.count_nonzero(np.abs(signs @ differences) >= observed))
    return (1 + extreme) / (1 + permutations)


def _quantiles(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    _check_confidence(confidence)
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2]).tolist()
    return low, high


def _interval(estimate: float, draws: np.ndarray, confidence: float, groups: int) -> Interval:
    return Interval(
        estimate, *_quantiles(draws, confidence), confidence, "bootstrap over groups", groups
    )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(
            "confidence must lie between 0 and 1",
            where=f"confidence={confidence}",
            fix="use 0.95 for 95 %",
        )
