"""Classification: accuracy, macro-F1, base against novel classes, with intervals over groups.

F1 of a class is ``2 TP / (2 TP + FP + FN)``; macro-F1 is its mean over the classes that occur as a
label or as an answer, so that a rare class weighs as much as a frequent one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossadapt.errors import UserError, did_you_mean
from crossadapt.evaluation.inputs import as_names, encode_groups
from crossadapt.evaluation.intervals import Interval, PairedTest, bootstrap_mean, paired_means

MULTIMODAL = "multimodal"
CLASS_PROTOCOLS = {
    MULTIMODAL: "top-1 accuracy and macro-F1 on the held-out split among all classes",
    "few-shot": "top-1 accuracy on the test split among all classes; everything is chosen on the "
    "validation split",
    "base-to-novel": "the first half of the classes is learnt from; top-1 accuracy among these, "
    "among the other half, and the harmonic mean of the two",
    "tip-official": "as Tip-Adapter's released code: the epoch is chosen on the test split, and "
    "the larger of the accuracies before and after the search counts; not held out",
    "domain-shift": "top-1 accuracy on other data with the same classes, adapter unchanged",
}
"""What is measured, in words, by the protocol's name."""
SINGLE = ("accuracy", "class_accuracy", "macro_f1")
"""Metrics of a result without parts."""
BASE_TO_NOVEL = ("harmonic_mean", "base", "novel")
"""Metrics of a result with the parts base and novel."""


@dataclass(frozen=True)
class ClassificationResult:
    """Answers to M questions with one right answer of `classes` each.

    Args:
        labels: right answers, int (M,), as places in `classes`.
        predicted: given answers, likewise.
        classes: names.
        group_names: names (M,) of what is drawn together in a bootstrap: items, sources, people.
        protocol: the rule of the evaluation, a key of `CLASS_PROTOCOLS`.
        parts: results of `base` and `novel` classes, which the headline is made of.

    Raises:
        UserError: nothing to measure, unequal lengths, or a number that is no class.
    """

    labels: np.ndarray
    predicted: np.ndarray
    classes: tuple[str, ...]
    group_names: tuple[str, ...]
    protocol: str = MULTIMODAL
    parts: Mapping[str, ClassificationResult] | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if count == 0 or len(self.predicted) != count or len(self.group_names) != count:
            raise UserError(
                f"{count} labels, {len(self.predicted)} answers and {len(self.group_names)} groups",
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
    def groups(self) -> int:
        """Number of groups."""
        return len(set(self.group_names))

    @property
    def correct(self) -> np.ndarray:
        """Float64 (M,): 100 where the answer is right, else 0; its mean is the accuracy."""
        return 100.0 * (self.labels == self.predicted)

    @property
    def accuracy(self) -> float:
        """Right answers in percent, of all parts together."""
        return float(self.correct.mean())

    @property
    def class_accuracy(self) -> float:
        """Mean over the classes that occur as labels of the accuracy within a class."""
        there = np.unique(self.labels)
        return float(np.mean([self.correct[self.labels == c].mean() for c in there]))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes, in percent."""
        return 100.0 * float(_macro_f1(self.confusion()))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that the protocol reports, the headline first."""
        if self.parts is not None:
            return BASE_TO_NOVEL
        second = "macro_f1" if self.protocol == MULTIMODAL else "class_accuracy"
        return ("accuracy", second)

    def metric(self, name: str) -> float:
        """A metric in percent; `harmonic_mean` is that of the accuracies of base and novel.

        Raises:
            UserError: there is no such metric.
        """
        known = SINGLE if self.parts is None else BASE_TO_NOVEL
        if name not in known:
            raise UserError(f"no metric {name!r}", fix=did_you_mean(name, known))
        if self.parts is None:
            return getattr(self, name)
        base, novel = (self.parts[part].accuracy for part in ("base", "novel"))
        return {"base": base, "novel": novel, "harmonic_mean": harmonic_mean(base, novel)}[name]

    def confusion(self) -> np.ndarray:
        """How often each class (row) was answered by each class (column): int64 (K, K)."""
        return self._table(None)

    def interval(self, **options: Any) -> Interval:
        """Bootstrap interval of the accuracy, over groups; options of `bootstrap_mean`.

        Raises:
            UserError: a single group.
        """
        return bootstrap_mean(self.correct, self.group_names, **options)

    def intervals(
        self, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
    ) -> dict[str, Interval]:
        """Percentile bootstrap of the reported metrics that have one, drawing whole groups.

        These are accuracies, of each part where there are parts, and macro-F1. A single group has
        no interval.
        """
        options: dict[str, Any] = {
            "resamples": resamples, "confidence": confidence, "seed": seed}  # fmt: skip
        whole = {"accuracy": self} if self.parts is None else self.parts
        found = {k: part.interval(**options) for k, part in whole.items() if part.groups > 1}
        if "macro_f1" in self.metrics and self.groups > 1:
            found["macro_f1"] = self._f1_interval(**options)
        return found

    def _f1_interval(self, *, resamples: int, confidence: float, seed: int) -> Interval:
        [codes] = encode_groups(as_names(self.group_names, len(self), "groups"))
        count = int(codes.max()) + 1
        rng, draws = np.random.default_rng(seed), []
        for _ in range(resamples):
            times = np.bincount(rng.integers(0, count, count), minlength=count)[codes]
            draws.append(100.0 * _macro_f1(self._table(times)))
        low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2]).tolist()
        method = "bootstrap over groups"
        return Interval(self.macro_f1, low, high, confidence, method, count)

    def _table(self, weights: np.ndarray | None) -> np.ndarray:
        """The confusion with each item counted as often as `weights` (M,) says."""
        size = len(self.classes)
        cells = self.labels * size + self.predicted
        return np.bincount(cells, weights=weights, minlength=size**2).reshape(size, size)

    def to_dict(self, *, answers: bool = False) -> dict[str, Any]:
        """Plain JSON types; with `answers` those of every item too, for `from_dict`."""
        found: dict[str, Any] = {
            "kind": "classification",
            "protocol": self.protocol,
            **{name: self.metric(name) for name in self.metrics},
            "items": len(self),
            "groups": self.groups,
            "classes": len(self.classes),
            "chance": 100.0 / len(self.classes),
            "intervals": {name: span.to_dict() for name, span in self.intervals().items()},
        }
        if self.parts is not None:
            # Each part chooses among its own classes, so that there is no chance of the whole.
            del found["chance"]
            found["parts"] = {k: part.to_dict(answers=answers) for k, part in self.parts.items()}
        if answers:
            found["details"] = {
                "classes": list(self.classes),
                "labels": self.labels.tolist(),
                "predicted": self.predicted.tolist(),
                "groups": list(self.group_names),
            }
        return found

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ClassificationResult:
        """Read what ``to_dict(answers=True)`` gave."""
        details, parts = record["details"], record.get("parts")
        return cls(
            np.asarray(details["labels"], np.int64),
            np.asarray(details["predicted"], np.int64),
            tuple(details["classes"]),
            tuple(details["groups"]),
            record["protocol"],
            None if parts is None else {name: cls.from_dict(part) for name, part in parts.items()},
        )


def harmonic_mean(base: float, novel: float) -> float:
    """``2 b n / (b + n)``; 0 when both are 0."""
    return 0.0 if base + novel == 0 else 2 * base * novel / (base + novel)


def classify(
    logits: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
    protocol: str = "few-shot",
) -> ClassificationResult:
    """The result of choosing the class of the largest logit.

    Args:
        logits: (M, N); of equal ones the first wins.
        labels: (M,), numbers of classes.
        classes: N names.
        groups: (M,) names of groups.
        protocol: written into the result.

    Raises:
        UserError: sizes that do not fit, no item, or a logit that is no number.
    """
    truth = np.asarray(labels, np.int64)
    if logits.shape != (len(truth), len(classes)) or not len(truth):
        raise UserError(
            f"logits {logits.shape} do not fit {len(truth)} items of {len(classes)} classes",
            where="classify",
            fix="give a row for each item and a column for each class",
        )
    if not np.isfinite(logits).all():
        raise UserError("a logit is not a number", where="classify", fix="check the features")
    return ClassificationResult(
        truth, logits.argmax(axis=1), tuple(classes), tuple(groups), protocol
    )


def join(base: ClassificationResult, novel: ClassificationResult) -> ClassificationResult:
    """Base and novel classes as one result, each item with its own part's class numbers."""
    shift = len(base.classes)
    return ClassificationResult(
        np.concatenate([base.labels, novel.labels + shift]),
        np.concatenate([base.predicted, novel.predicted + shift]),
        base.classes + novel.classes,
        base.group_names + novel.group_names,
        "base-to-novel",
        {"base": base, "novel": novel},
    )


def paired_accuracy(before: ClassificationResult, after: ClassificationResult) -> PairedTest:
    """Whether the same items are answered better: see `intervals.paired_means`.

    Raises:
        UserError: the results are not about the same items and classes, or a single group.
    """
    same = before.classes == after.classes and before.group_names == after.group_names
    if not same or not np.array_equal(before.labels, after.labels):
        raise UserError(
            "before and after were not measured on the same items",
            where="paired_accuracy",
            fix="evaluate both on the same split, with the same classes",
        )
    return paired_means(before.correct, after.correct, before.group_names, metric="accuracy")


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


def _macro_f1(table: np.ndarray) -> float:
    """Macro-F1, 0 to 1, of a confusion table (K, K)."""
    right = np.diagonal(table).astype(np.float64)
    size = table.sum(0) + table.sum(1)
    there = size > 0
    return float((2 * right[there] / size[there]).mean())
