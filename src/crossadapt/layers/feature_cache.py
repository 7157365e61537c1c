"""A cache of labelled features that is asked by similarity: arithmetic of the Tip-Adapter family.

Zhang et al., "Tip-Adapter", ECCV 2022, arXiv 2111.03930. R keys with a label each; a query's cosine
c with a key counts as ``exp(-beta (1 - c))`` for the key's class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BETA_STEPS, ALPHA_STEPS, SMALLEST = 200, 20, 0.1
"""The published search: so many values of beta and of alpha, each from `SMALLEST` on."""


def affinity(cosines: Tensor, beta: float | Tensor) -> Tensor:
    """``exp(-beta (1 - cosines))``, of any shape; in [exp(-2 beta), 1] for true cosines."""
    return torch.exp(-beta * (1 - cosines))


def class_sums(affinities: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Affinities (B, R) added up by class: (B, classes), the product with one-hot labels.

    Args:
        affinities: of every query with every key.
        labels: int64 (R,), the class of each key.
        classes: N; a class without a key gets 0.
    """
    sums = affinities.new_zeros(len(affinities), classes)
    return sums.index_add(1, labels, affinities)


def mean_of_views(views: Tensor) -> Tensor:
    """Keys (R, C) of length one from features (V, R, C) of V views.

    As published, the mean is taken of the features as they come from the encoder and its result
    normalised once; normalising every view first gives other keys.
    """
    return F.normalize(views.mean(dim=0), dim=-1)


def grid(largest: float, steps: int) -> Tensor:
    """``0.1 + i (largest - 0.1) / steps``, i < steps: float64 (steps,); `largest` is not in it."""
    return SMALLEST + torch.arange(steps, dtype=torch.float64) * (largest - SMALLEST) / steps


def disagreement_weights(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Weights (B,) of queries, larger where two affinities (B, R) differ; mean 1, no gradient.

    ``(1 - share) + share d / mean(d)`` with d the mean absolute difference of a query. All ones
    when nothing differs anywhere.
    """
    with torch.no_grad():
        difference = (one - other).abs().mean(dim=1)
        mean = difference.mean()
        if mean == 0:
            return torch.ones_like(difference)
        return (1 - share) + share * difference / mean
