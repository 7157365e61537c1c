from __future__ import annotations

import numpy as np
import pytest

from crossadapt.errors import UserError
from crossadapt.evaluation import (
    bootstrap_mean,
    evaluate,
    metric_intervals,
    paired_test,
    paired_tests,
    seed_interval,
)
from crossadapt.evaluation.metrics import RetrievalResult
from crossadapt.evaluation.student import student_t


def result(noise, seed=0, items=60, captions=1):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(items, 16))
    texts = np.repeat(images, captions, 0)
    texts = texts + noise * rng.normal(size=texts.shape)
    return evaluate(images, texts, range(items), np.repeat(range(items), captions))


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)],
)
def test_student_t_equals_printed_tables(degrees, quantile):
    assert student_t(0.975, degrees) == pytest.approx(quantile, abs=5e-5)


def test_seed_interval_by_hand():
    found = seed_interval([1.0, 2.0, 3.0])
    assert found.estimate == 2
    assert found.high - 2 == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert found.format() == "2.0 [-0.5, 4.5]"
    single = seed_interval([7.25])
    assert (single.low, single.high, single.format(2)) == (None, None, "7.25")
    for bad in ([], [float("nan")]):
        with pytest.raises(UserError, match="at least one finite"):
            seed_interval(bad)


def test_bootstrap_matches_the_normal_interval():
    values = np.r_[np.zeros(300), np.ones(300)] * 100
    found = bootstrap_mean(values, range(600), resamples=4000)
    half = 1.96 * 50 / 600**0.5
    assert found.low == pytest.approx(50 - half, abs=0.6)
    assert found.high == pytest.approx(50 + half, abs=0.6)
    assert found == bootstrap_mean(values, range(600), resamples=4000)


def test_groups_are_drawn_whole():
    # Five copies of each query add no information; a bootstrap over queries would think so.
    values = np.random.default_rng(0).random(40)
    once = bootstrap_mean(values, range(40))
    five = bootstrap_mean(np.repeat(values, 5), np.repeat(range(40), 5))
    assert (once.low, once.high) == pytest.approx((five.low, five.high))


def test_intervals_hold_the_estimate_and_rsum_is_joint():
    r = result(1.0, captions=5)
    found = metric_intervals(r, resamples=500)
    for name, interval in found.items():
        assert interval.low <= r.metric(name) <= interval.high
        assert interval.count == 60
    parts = [found[n] for n in found if n.split(".")[-1].startswith("r") and n != "rsum"]
    width = found["rsum"].high - found["rsum"].low
    assert max(i.high - i.low for i in parts) < width <= sum(i.high - i.low for i in parts)


def test_paired_test_sees_a_gain_and_its_sign():
    before, after = result(2.0), result(0.5)
    gain = paired_test(before, after)
    assert gain.difference == after.text_to_image.r1 - before.text_to_image.r1 > 0
    assert 0 < gain.low <= gain.difference <= gain.high
    assert gain.p_value == pytest.approx(1 / 10_001)
    loss = paired_test(after, before)
    assert (loss.difference, loss.low) == pytest.approx((-gain.difference, -gain.high))
    assert paired_test(before, after, "text_to_image.mean_rank").high < 0


def test_paired_test_of_equals():
    same = paired_test(result(1.0), result(1.0))
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_sign_flip_equals_the_exact_distribution():
    # Five groups gain and none loses: 2 of 32 sign patterns are as extreme.
    eye, wrong = np.eye(8), np.eye(8)
    wrong[:5] = np.roll(np.eye(8)[:5], 1, 0)
    before, after = (evaluate(eye, t, range(8), range(8)) for t in (wrong, eye))
    found = paired_test(before, after, permutations=40_000)
    assert found.p_value == pytest.approx(2 / 32, abs=4e-3)


def test_false_alarms_are_as_rare_as_promised():
    p = [
        paired_test(
            result(1.5, s, 40), result(1.5, s + 1000, 40), resamples=10, permutations=200
        ).p_value
        for s in range(100)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.12


def test_misuse_is_named():
    r = result(1.0)
    bare = RetrievalResult.from_dict(r.to_dict())
    with pytest.raises(UserError, match="no ranks per query"):
        metric_intervals(bare)
    with pytest.raises(UserError, match="no interval for the metric"):
        metric_intervals(r, metrics=["text_to_image.median_rank"])
    with pytest.raises(UserError, match="not measured on the same queries"):
        paired_tests(r, result(1.0, items=50))
    with pytest.raises(UserError, match="confidence"):
        seed_interval([1, 2], confidence=95)
    with pytest.raises(UserError, match="at least two groups"):
        metric_intervals(evaluate(np.eye(1), np.eye(1), [0], [0]))
