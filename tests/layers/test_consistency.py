"""The agreement of two views against sums written out, and what it must not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from crossadapt.layers.consistency import DIVERGENCES, consistency, contrast

N, D, T, TC = 4, 6, 0.2, 0.04


def views(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator)
    return x, x + torch.randn(N, D, generator=generator)


def cos(a, b) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


def test_contrast_leaves_the_positive_out_of_the_denominator() -> None:
    x, y = views()
    total = 0.0
    for i in range(N):
        rest = sum(math.exp(cos(x[i], y[j]) / T) for j in range(N) if j != i)
        total -= math.log(math.exp(cos(x[i], y[i]) / T) / rest) / N
    assert float(contrast(x, y, T)) == pytest.approx(total, rel=1e-4)


def profile(rows, x, i):
    weights = [math.exp(cos(rows[i], x[j]) / 0.5) for j in range(N) if j != i]
    return [w / sum(weights) for w in weights]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


BY_HAND = {
    "js": lambda p, q: (
        (
            kl(p, [(a + b) / 2 for a, b in zip(p, q, strict=True)])
            + kl(q, [(a + b) / 2 for a, b in zip(p, q, strict=True)])
        )
        / 2
    ),
    "forward-kl": kl,
    "reverse-kl": lambda p, q: kl(q, p),
    "symmetric-kl": lambda p, q: (kl(p, q) + kl(q, p)) / 2,
    "renyi": lambda p, q: -2 * math.log(sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True))),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_profiles_have_every_row_and_column_but_the_diagonal(name) -> None:
    """The released code drops one of each and takes a softmax of probabilities."""
    x, y = views()
    wanted = sum(BY_HAND[name](profile(x, x, i), profile(y, x, i)) for i in range(N)) / N
    assert float(consistency(x, y, 0.5, name)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_views_agree(name) -> None:
    x, _ = views()
    assert float(consistency(x, x.clone(), TC, name)) == pytest.approx(0.0, abs=1e-6)
    assert math.isfinite(float(contrast(x, x.clone(), T)))


def test_the_mixture_is_taken_of_probabilities_so_js_is_bounded() -> None:
    x = torch.eye(N, D)
    y = torch.roll(x, 1, dims=0)
    assert 0 < float(consistency(x, y, 0.01)) <= math.log(2) + 1e-6


def test_order_of_the_batch_does_not_matter() -> None:
    x, y = views()
    order = torch.tensor([2, 0, 3, 1])
    assert float(contrast(x[order], y[order], T)) == pytest.approx(float(contrast(x, y, T)))
    assert float(consistency(x[order], y[order], TC)) == pytest.approx(
        float(consistency(x, y, TC)), rel=1e-4
    )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_reaches_the_trained_features_alone_and_is_finite(name) -> None:
    x, y = (v.requires_grad_() for v in views())
    (contrast(x, y, T) + 2 * consistency(x, y, TC, name)).backward()
    assert y.grad is None
    assert bool(x.grad.isfinite().all())
    assert bool(x.grad.any())


def test_rows_that_belong_together_are_no_negatives() -> None:
    x, y = views()
    same = torch.zeros(N, N, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    total = 0.0
    for i in range(N):
        others = [j for j in range(N) if j != i and not same[i, j]]
        rest = sum(math.exp(cos(x[i], y[j]) / T) for j in others)
        total -= math.log(math.exp(cos(x[i], y[i]) / T) / rest) / N
    assert float(contrast(x, y, T, same)) == pytest.approx(total, rel=1e-4)
    # Nobody is anybody's negative: nothing to compare, and no NaN.
    everything = torch.ones(N, N, dtype=torch.bool)
    assert float(contrast(x, y, T, everything)) == 0.0
    assert float(consistency(x, y, TC, "js", everything)) == 0.0
