"""Retrieval metrics: R@1/5/10, median and mean rank, in both directions, with their sizes.

R@K is the percentage of queries whose *average* rank is at most K. A positive that ties with n
other items takes the rank in the middle of them, so a model that gives every item the same score
gets an R@1 of 0 and not 100; the optimistic and pessimistic values say how much the ties matter
(they are equal when there are none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from crossadapt.errors import UserError, did_you_mean
from crossadapt.evaluation.ranks import Ranks

Direction = Literal["text_to_image", "image_to_text"]
DIRECTIONS: tuple[Direction, ...] = ("text_to_image", "image_to_text")
CUTOFFS = (1, 5, 10)
TABLE_HEADER = ("Direction", "R@1", "R@5", "R@10", "MdR", "MnR")
METRIC_NAMES = (
    *(f"{d}.{m}" for d in DIRECTIONS for m in ("r1", "r5", "r10", "median_rank", "mean_rank")),
    "rsum",
)
"""Names understood by `RetrievalResult.metric`."""
EXTRA_METRICS = {
    "order_probe": "Order probe",
    "accuracy": "Accuracy",
    "class_accuracy": "Mean class accuracy",
    "macro_f1": "Macro-F1",
    "harmonic_mean": "Harmonic mean",
    "base": "Base classes",
    "novel": "Novel classes",
}
"""Metrics of a comparison that are no ranks, and what people call them."""


def direction_label(direction: str) -> str:
    """``text_to_image`` as people write it: ``Text → image``."""
    return direction.replace("_to_", " → ").capitalize()


def metric_label(name: str) -> str:
    """A metric's name as people write it: ``text_to_image.r1`` becomes ``Text → image R@1``."""
    if name in EXTRA_METRICS:
        return EXTRA_METRICS[name]
    if name == "rsum":
        return "RSum"
    direction, _, part = name.partition(".")
    short = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "median_rank": "MdR", "mean_rank": "MnR"}
    return f"{direction_label(direction)} {short.get(part, part)}".strip()


@dataclass(frozen=True)
class DirectionMetrics:
    """One direction: recalls in percent, ranks from 1."""

    queries: int
    gallery: float
    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    optimistic: tuple[float, float, float]
    """R@1, R@5, R@10 when every tie is won."""
    pessimistic: tuple[float, float, float]
    """R@1, R@5, R@10 when every tie is lost."""

    @classmethod
    def from_ranks(cls, ranks: Ranks, gallery: int) -> DirectionMetrics:
        """Metrics of the queries in `ranks` against `gallery` items."""
        average = ranks.average
        return cls(
            len(ranks),
            gallery,
            *recalls(average),
            float(np.median(average)),
            float(average.mean()),
            recalls(ranks.optimistic),
            recalls(ranks.pessimistic),
        )

    @classmethod
    def mean(cls, parts: Sequence[DirectionMetrics]) -> DirectionMetrics:
        """The plain mean over folds; `queries` is their sum, `gallery` the mean gallery."""

        def average(name: str) -> float:
            return float(np.mean([getattr(p, name) for p in parts]))

        def averages(name: str) -> tuple[float, float, float]:
            a, b, c = np.mean([getattr(p, name) for p in parts], axis=0).tolist()
            return a, b, c

        return cls(
            sum(p.queries for p in parts),
            average("gallery"),
            average("r1"),
            average("r5"),
            average("r10"),
            average("median_rank"),
            average("mean_rank"),
            averages("optimistic"),
            averages("pessimistic"),
        )

    @property
    def tie_sensitivity(self) -> float:
        """Largest gap between optimistic and pessimistic recall, in points; 0 without ties."""
        return max(o - p for o, p in zip(self.optimistic, self.pessimistic, strict=True))


@dataclass(frozen=True)
class QueryRanks:
    """Ranks of one direction with each query's group number: what intervals and tests need."""

    ranks: Ranks
    groups: np.ndarray


@dataclass(frozen=True)
class RetrievalResult:
    """What one evaluation found, under which protocol and on how many items.

    `details` holds the rank of every query in the order given (None after `from_dict` of a record
    saved without them); it takes no part in comparison.
    """

    protocol: str
    similarity: str
    images: int
    texts: int
    groups: int
    folds: int
    text_to_image: DirectionMetrics
    image_to_text: DirectionMetrics
    details: Mapping[str, QueryRanks] | None = field(default=None, compare=False, repr=False)

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, at most 600."""
        return sum(d.r1 + d.r5 + d.r10 for d in (self.text_to_image, self.image_to_text))

    def metric(self, name: str) -> float:
        """One number by name (`METRIC_NAMES`): ``text_to_image.r1``, …, ``rsum``."""
        if name not in METRIC_NAMES:
            raise UserError(f"unknown metric {name!r}", fix=did_you_mean(name, METRIC_NAMES))
        if name == "rsum":
            return self.rsum
        direction, part = name.split(".")
        return float(getattr(getattr(self, direction), part))

    def table_rows(self) -> list[tuple[str, ...]]:
        """One row of strings per direction, under `TABLE_HEADER`."""
        rows: list[tuple[str, ...]] = []
        for name in DIRECTIONS:
            d: DirectionMetrics = getattr(self, name)
            numbers = (d.r1, d.r5, d.r10, d.median_rank, d.mean_rank)
            rows.append((direction_label(name), *(f"{n:.1f}" for n in numbers)))
        return rows

    def to_dict(self, *, ranks: bool = False) -> dict[str, Any]:
        """Plain JSON types; with `ranks` also the rank of every query, for later paired tests."""
        record: dict[str, Any] = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("details", *DIRECTIONS)
        }
        record["rsum"] = self.rsum
        for name in DIRECTIONS:
            part = getattr(self, name)
            record[name] = {f.name: getattr(part, f.name) for f in fields(part)}
            for key in ("optimistic", "pessimistic"):
                record[name][key] = list(record[name][key])
        if ranks and self.details is not None:
            record["ranks"] = {
                name: {
                    "optimistic": d.ranks.optimistic.tolist(),
                    "pessimistic": d.ranks.pessimistic.tolist(),
                    "groups": d.groups.tolist(),
                }
                for name, d in self.details.items()
            }
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> RetrievalResult:
        """The inverse of `to_dict`; a missing or unknown key is a `UserError`."""
        own = {f.name for f in fields(cls)} - {"details", *DIRECTIONS}
        _check_keys(record, own | set(DIRECTIONS), {"rsum", "ranks"}, "evaluation record")
        parts: dict[str, DirectionMetrics] = {}
        for name in DIRECTIONS:
            values = dict(record[name])
            _check_keys(values, {f.name for f in fields(DirectionMetrics)}, set(), name)
            for key in ("optimistic", "pessimistic"):
                values[key] = tuple(values[key])
            parts[name] = DirectionMetrics(**values)
        details = None
        if "ranks" in record:
            details = {
                name: QueryRanks(
                    Ranks(
                        np.asarray(d["optimistic"], np.int64),
                        np.asarray(d["pessimistic"], np.int64),
                    ),
                    np.asarray(d["groups"], np.int64),
                )
                for name, d in record["ranks"].items()
            }
        return cls(
            **{name: record[name] for name in own},
            text_to_image=parts["text_to_image"],
            image_to_text=parts["image_to_text"],
            details=details,
        )


def recalls(ranks: np.ndarray) -> tuple[float, float, float]:
    """R@1, R@5, R@10 in percent of 1-based `ranks` (Q,)."""
    one, five, ten = (100.0 * float(np.mean(ranks <= k)) for k in CUTOFFS)
    return one, five, ten


def _check_keys(record: Mapping[str, Any], need: set[str], may: set[str], where: str) -> None:
    missing, unknown = need - set(record), set(record) - need - may
    if missing or unknown:
        found = f"missing {sorted(missing)}" if missing else f"unknown {sorted(unknown)}"
        raise UserError(
            f"this is not a crossadapt evaluation record: {found}",
            where=where,
            fix="write it with RetrievalResult.to_dict()",
        )
