"""Accuracy and macro-F1 against sums by hand, and intervals with the right properties."""

from __future__ import annotations

import numpy as np
import pytest

from crossadapt.errors import UserError
from crossadapt.evaluation.classification import (
    ClassificationResult,
    class_numbers,
    paired_accuracy,
)


def made(labels, predicted, classes=3, groups=None) -> ClassificationResult:
    names = tuple(groups or (f"g{i}" for i in range(len(labels))))
    return ClassificationResult(
        np.array(labels), np.array(predicted), tuple("abcdef"[:classes]), names
    )


def brute_force_f1(labels, predicted) -> float:
    scores = []
    for name in set(labels) | set(predicted):
        right = sum(x == y == name for x, y in zip(labels, predicted, strict=True))
        precision = right / max(1, list(predicted).count(name))
        recall = right / max(1, list(labels).count(name))
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return 100 * sum(scores) / len(scores)


def test_by_hand() -> None:
    found = made([0, 0, 1, 1, 2], [0, 1, 1, 1, 0])
    assert found.accuracy == pytest.approx(60.0)
    # a: 2/4, b: 4/5, c: 0
    assert found.macro_f1 == pytest.approx(100 * (0.5 + 0.8 + 0) / 3)
    assert found.confusion().tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_equals_brute_force(seed) -> None:
    random = np.random.default_rng(seed)
    labels, predicted = random.integers(0, 5, (2, 30))
    found = made(labels, predicted, classes=6)
    assert found.macro_f1 == pytest.approx(brute_force_f1(labels.tolist(), predicted.tolist()))


def test_a_class_that_does_not_occur_counts_for_nothing() -> None:
    assert made([0, 1], [0, 1], classes=6).macro_f1 == pytest.approx(100.0)


def test_intervals_hold_the_estimate_and_shrink_with_more_groups() -> None:
    random = np.random.default_rng(0)
    widths = []
    for count in (40, 400):
        labels = random.integers(0, 3, count)
        wrong = random.random(count) < 0.3
        found = made(labels, np.where(wrong, (labels + 1) % 3, labels)).intervals(resamples=300)
        for interval in found.values():
            assert interval.low < interval.estimate < interval.high
            assert interval.count == count
        widths.append(found["accuracy"].high - found["accuracy"].low)
    assert widths[1] < widths[0] / 2
    # Binomial: 1.96 sqrt(p (1 - p) / n) on each side, in percent.
    assert widths[1] == pytest.approx(2 * 196 * (0.3 * 0.7 / 400) ** 0.5, rel=0.2)


def test_items_of_one_group_are_drawn_together() -> None:
    labels, predicted = [0, 1] * 20, [0] * 40
    alone = made(labels, predicted).intervals(resamples=300)["accuracy"]
    paired = made(labels, predicted, groups=[f"g{i // 2}" for i in range(40)])
    together = paired.intervals(resamples=300)["accuracy"]
    # Every group holds one right and one wrong answer: no draw can differ.
    assert together.low == together.high == 50.0
    assert alone.high - alone.low > 10


def test_paired() -> None:
    labels = [0] * 60
    worse, better = made(labels, [1] * 30 + [0] * 30), made(labels, [1] * 6 + [0] * 54)
    test = paired_accuracy(worse, better)
    assert (test.before, test.after, test.difference) == pytest.approx((50.0, 90.0, 40.0))
    assert test.low > 0
    assert test.p_value < 0.001
    assert paired_accuracy(worse, worse).p_value == 1.0
    with pytest.raises(UserError, match="same items"):
        paired_accuracy(worse, made([1] * 60, [1] * 60))


def test_record_and_bad_input() -> None:
    found = made([0, 1, 2], [0, 1, 1]).to_dict(answers=True)
    assert found["chance"] == pytest.approx(100 / 3)
    assert found["predicted"] == [0, 1, 1]
    assert made([0], [0]).to_dict()["intervals"] == {}
    for labels, predicted in (([], []), ([0, 1], [0]), ([0, 9], [0, 1]), ([0, 1], [0, -1])):
        with pytest.raises(UserError):
            made(labels, predicted)
    assert class_numbers(["b", "a"], ("a", "b"), "here").tolist() == [1, 0]
    with pytest.raises(UserError, match="'c' does not occur in training"):
        class_numbers(["c"], ("a", "b"), "here")
