"""Classification: accuracy and macro-F1 with bootstrap intervals over groups.

F1 of a class is ``2 TP / (2 TP + FP + FN)``; macro-F1 is its mean over the classes that occur as a
label or as an answer, so that a rare class weighs as much as a frequent one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossadapt.errors import UserError
from crossadapt.evaluation.inputs import as_names, encode_groups
from crossadapt.evaluation.intervals import Interval, PairedTest, bootstrap_mean, paired_means


@dataclass(frozen=True)
class ClassificationResult:
    """Answers to N questions with one right answer of `classes` each.

    Args:
        labels: right answers, int (N,), as places in `classes`.
        predicted: given answers, likewise.
        classes: names.
        groups: names (N,) of what is drawn together in a bootstrap: items, sources, people.

    Raises:
        UserError: nothing to measure, unequal lengths, or a number that is no class.
    """

    labels: np.ndarray
    predicted: np.ndarray
    classes: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.labels)
        if count == 0 or len(self.predicted) != count or len(self.groups) != count:
            raise UserError(
                f"{count} labels, {len(self.predicted)} answers and {len(self.groups)} groups",
                where="classification",
                fix="give one of each for every item, and at least one item",
            )
        for values in (self.labels, self.predicted):
            if values.min() < 0 or values.max() >= len(self.classes):
                raise UserError(
                    f"a class number outside 0 to {len(self.classes) - 1}", where="classification"
                )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """Right answers in percent."""
        return 100.0 * float((self.labels == self.predicted).mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes, in percent."""
        return 100.0 * float(_macro_f1(self.confusion()[None])[0])

    def confusion(self) -> np.ndarray:
        """How often each class (row) was answered by each class (column): int64 (K, K)."""
        size = len(self.classes)
        return np.bincount(self.labels * size + self.predicted, minlength=size**2).reshape(
            size, size
        )

    def intervals(
        self, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
    ) -> dict[str, Interval]:
        """Percentile bootstrap of ``accuracy`` and ``macro_f1``, drawing whole groups.

        Raises:
            UserError: a single group.
        """
        right = 100.0 * (self.labels == self.predicted)
        options: dict[str, Any] = {"confidence": confidence, "seed": seed}
        return {
            "accuracy": bootstrap_mean(right, self.groups, resamples=resamples, **options),
            "macro_f1": self._f1_interval(resamples, confidence, seed),
        }

    def _f1_interval(self, resamples: int, confidence: float, seed: int) -> Interval:
        [codes] = encode_groups(as_names(self.groups, len(self), "groups"))
        count, size = int(codes.max()) + 1, len(self.classes)
        cells = self.labels * size + self.predicted
        rng, draws = np.random.default_rng(seed), []
        for _ in range(resamples):
            times = np.bincount(rng.integers(0, count, count), minlength=count)[codes]
            table = np.bincount(cells, weights=times, minlength=size**2)
            draws.append(_macro_f1(table.reshape(1, size, size))[0])
        low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
        return Interval(
            self.macro_f1,
            100.0 * float(low),
            100.0 * float(high),
            confidence,
            "bootstrap over groups",
            count,
        )

    def to_dict(self, *, answers: bool = False) -> dict[str, Any]:
        """Plain JSON types; with `answers` those of every item too."""
        intervals = self.intervals() if len(set(self.groups)) > 1 else {}
        found: dict[str, Any] = {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "items": len(self),
            "classes": len(self.classes),
            "chance": 100.0 / len(self.classes),
            "intervals": {name: interval.to_dict() for name, interval in intervals.items()},
        }
        if answers:
            found |= {
                "names": list(self.classes),
                "labels": self.labels.tolist(),
                "predicted": self.predicted.tolist(),
                "groups": list(self.groups),
            }
        return found


def paired_accuracy(before: ClassificationResult, after: ClassificationResult) -> PairedTest:
    """Whether the same items are answered better: see `intervals.paired_tests`.

    Raises:
        UserError: the results are not about the same items.
    """
    if before.groups != after.groups or not np.array_equal(before.labels, after.labels):
        raise UserError("the two results are not about the same items", where="paired_accuracy")
    was, now = (100.0 * (r.labels == r.predicted) for r in (before, after))
    return paired_means(was, now, before.groups, metric="accuracy")


def class_numbers(labels: Sequence[str], classes: Sequence[str], where: str) -> np.ndarray:
    """Labels as places in `classes`.

    Raises:
        UserError: a label that is not among them.
    """
    known = {name: place for place, name in enumerate(classes)}
    for label in labels:
        if label not in known:
            raise UserError(
                f"the class {label!r} does not occur in training",
                where=where,
                fix="check its spelling, or put examples of it into the training split",
            )
    return np.array([known[label] for label in labels], np.int64)


def _macro_f1(tables: np.ndarray) -> np.ndarray:
    """Macro-F1 (R,) of confusion tables (R, K, K)."""
    right = np.diagonal(tables, axis1=1, axis2=2).astype(np.float64)
    size = tables.sum(1) + tables.sum(2)
    f1 = np.divide(2 * right, size, out=np.zeros_like(right), where=size > 0)
    return f1.sum(1) / (size > 0).sum(1)
