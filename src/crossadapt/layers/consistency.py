"""Contrast and consistency between trained features and fixed ones of a second view.

After Wei et al., "CO2: Consistent Contrast for Unsupervised Visual Representation Learning", arXiv
2010.02217. For trained x and fixed x' (B, E), all similarities cosines:

    contrast     -mean_i log( s_ii / sum_{j != i} s_ij ),   s_ij = exp(cos(x_i, x'_j) / T)
    consistency  p_ij ~ exp(cos(x_i, x_j) / T_c), q_ij ~ exp(cos(x'_i, x_j) / T_c), j != i
                 mean_i d(p_i, q_i), d the Jensen-Shannon divergence unless another is asked for
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Under a softmax this is zero, and zero times it is zero, where -inf would make NaN.
_NEVER = -1e4


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(dim=1)


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    mixture = torch.logaddexp(p, q) - torch.log(p.new_tensor(2.0))
    return (_kl(p, mixture) + _kl(q, mixture)) / 2


def _renyi(p: Tensor, q: Tensor) -> Tensor:
    return -2 * torch.logsumexp((p + q) / 2, dim=1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "js": _jensen_shannon,
    "forward-kl": _kl,
    "reverse-kl": lambda p, q: _kl(q, p),
    "symmetric-kl": lambda p, q: (_kl(p, q) + _kl(q, p)) / 2,
    "renyi": _renyi,
}
"""By name, on log-probabilities (B, B) to (B,). `renyi` is of order one half."""


def contrast(x: Tensor, other: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """How far each row is from its own fixed view, against the views of the other rows.

    Args:
        x: trained features (B, E), any length.
        other: fixed features of the second views (B, E); no gradient goes there.
        temperature: T.
        same: bool (B, B), pairs that are no negatives of each other; the diagonal when None.

    Returns:
        A scalar in float32. The positive is not in the denominator, so it may be negative. Rows
        without negatives do not count.
    """
    scores = _cosines(x, other.detach()) / temperature
    same = _with_diagonal(same, scores)
    counted = (~same).any(dim=1)
    rest = scores.masked_fill(same, _NEVER).logsumexp(dim=1)
    loss = (rest - scores.diagonal()) * counted
    return loss.sum() / counted.sum().clamp_min(1)


def consistency(
    x: Tensor,
    other: Tensor,
    temperature: float,
    divergence: str = "js",
    same: Tensor | None = None,
) -> Tensor:
    """How differently a row and its fixed view see the other rows; arguments as for `contrast`.

    Args:
        x: trained features (B, E).
        other: fixed features of the second views (B, E).
        temperature: T_c.
        divergence: a key of `DIVERGENCES`.
        same: as for `contrast`.
    """
    masked = _with_diagonal(same, x)
    p, q = (
        (_cosines(rows, x) / temperature).masked_fill(masked, _NEVER).log_softmax(dim=1)
        for rows in (x, other.detach())
    )
    counted = (~masked).any(dim=1)
    return (DIVERGENCES[divergence](p, q) * counted).sum() / counted.sum().clamp_min(1)


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1) @ F.normalize(y.float(), dim=-1).T


def _with_diagonal(same: Tensor | None, like: Tensor) -> Tensor:
    itself = torch.eye(len(like), dtype=torch.bool, device=like.device)
    return itself if same is None else itself | same
