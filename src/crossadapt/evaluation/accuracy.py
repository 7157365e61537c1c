"""Classification metrics: top-1 accuracy with its interval, over classes, base against novel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossadapt.errors import UserError, did_you_mean
from crossadapt.evaluation.intervals import Interval, PairedTest, bootstrap_mean, paired_means

CLASS_PROTOCOLS = {
    "few-shot": "top-1 accuracy on the test split among all classes; everything is chosen on the "
    "validation split",
    "base-to-novel": "the first half of the classes is learnt from; top-1 accuracy among these, "
    "among the other half, and the harmonic mean of the two",
    "tip-official": "as Tip-Adapter's released code: the epoch is chosen on the test split, and "
    "the larger of the accuracies before and after the search counts; not held out",
    "domain-shift": "top-1 accuracy on other data with the same classes, adapter unchanged",
}
"""What is measured, in words, by the protocol's name."""
METRICS = ("accuracy", "class_accuracy")
BASE_TO_NOVEL = ("harmonic_mean", "base", "novel")


@dataclass(frozen=True)
class ClassificationResult:
    """One model on labelled pictures.

    Attributes:
        protocol: the rule of the evaluation.
        classes: the N names among which was chosen.
        labels: int64 (M,), the class of each picture.
        predicted: int64 (M,), the class it was given.
        groups: (M,) names; pictures of one group are not independent.
        parts: further results by name (`base` and `novel`), which the headline is made of.
    """

    protocol: str
    classes: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    group_names: tuple[str, ...]
    parts: Mapping[str, ClassificationResult] | None = None

    @property
    def correct(self) -> np.ndarray:
        """Float64 (M,): 100 where the class is right, else 0; its mean is the accuracy."""
        return 100.0 * (self.labels == self.predicted)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(set(self.group_names))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names understood by `metric`, the headline first."""
        return METRICS if self.parts is None else BASE_TO_NOVEL

    def metric(self, name: str) -> float:
        """A metric in percent.

        `class_accuracy` is the mean over classes of the accuracy within a class; `harmonic_mean`
        that of the accuracies on base and novel classes.

        Raises:
            UserError: there is no such metric.
        """
        if name not in self.metrics:
            raise UserError(f"no metric {name!r}", fix=did_you_mean(name, self.metrics))
        if self.parts is not None:
            base, novel = (self.parts[part].metric("accuracy") for part in ("base", "novel"))
            return {"base": base, "novel": novel, "harmonic_mean": harmonic_mean(base, novel)}[name]
        if name == "accuracy":
            return float(self.correct.mean())
        there = np.unique(self.labels)
        return float(np.mean([self.correct[self.labels == c].mean() for c in there]))

    def interval(self, **options: Any) -> Interval:
        """Bootstrap interval of the accuracy, over groups; options of `bootstrap_mean`."""
        return bootstrap_mean(self.correct, self.group_names, **options)

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Plain JSON types; with `pictures` also what was given to each one."""
        record: dict[str, Any] = {
            "kind": "classification",
            "protocol": self.protocol,
            "classes": len(self.classes),
            "pictures": len(self.labels),
            "groups": self.groups,
            **{name: self.metric(name) for name in self.metrics},
        }
        if self.parts is not None:
            record["parts"] = {k: v.to_dict(pictures=pictures) for k, v in self.parts.items()}
        elif self.groups > 1:
            record["interval"] = self.interval().to_dict()
        if pictures:
            record["details"] = {
                "classes": list(self.classes),
                "labels": self.labels.tolist(),
                "predicted": self.predicted.tolist(),
                "groups": list(self.group_names),
            }
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ClassificationResult:
        """Read what ``to_dict(pictures=True)`` gave."""
        details, parts = record["details"], record.get("parts")
        return cls(
            record["protocol"],
            tuple(details["classes"]),
            np.asarray(details["labels"], np.int64),
            np.asarray(details["predicted"], np.int64),
            tuple(details["groups"]),
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
        UserError: sizes that do not fit, no picture, or a logit that is no number.
    """
    truth = np.asarray(labels, np.int64)
    if logits.shape != (len(truth), len(classes)) or len(groups) != len(truth) or not len(truth):
        raise UserError(
            f"logits {logits.shape} do not fit {len(truth)} pictures of {len(classes)} classes",
            where="classify",
            fix="give a row for each picture and a column for each class",
        )
    if not np.isfinite(logits).all():
        raise UserError("a logit is not a number", where="classify", fix="check the features")
    return ClassificationResult(
        protocol, tuple(classes), truth, logits.argmax(axis=1), tuple(groups)
    )


def join(base: ClassificationResult, novel: ClassificationResult) -> ClassificationResult:
    """Base and novel classes as one result, each picture with its own part's class numbers."""
    shift = len(base.classes)
    return ClassificationResult(
        "base-to-novel",
        base.classes + novel.classes,
        np.concatenate([base.labels, novel.labels + shift]),
        np.concatenate([base.predicted, novel.predicted + shift]),
        base.group_names + novel.group_names,
        {"base": base, "novel": novel},
    )


def paired_accuracy(
    before: ClassificationResult, after: ClassificationResult, **options: Any
) -> PairedTest:
    """Whether the same pictures were classified better; options of `paired_means`.

    Raises:
        UserError: not the same pictures and classes.
    """
    if before.classes != after.classes or not np.array_equal(before.labels, after.labels):
        raise UserError(
            "before and after were not measured on the same pictures",
            fix="evaluate both on the same split, with the same classes",
        )
    return paired_means("accuracy", before.correct, after.correct, before.group_names, **options)
