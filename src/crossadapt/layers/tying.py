"""Two towers held together by a few shared values that scale channels in both (MV-Adapter)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Factor(nn.Module):
    """What two towers share in a tied layer: `size` values, 0 at first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size))


class Tie(nn.Module):
    """``M f + b``: one tower's scaling of `channels` from a factor f that both towers share.

    Args:
        factor: the shared part; the same object in both towers.
        channels: how many are scaled.
        start: ``published`` starts b at random values within ``size ** -0.5`` of 0, ``one`` at 1,
            so that at first nothing is scaled.
    """

    def __init__(self, factor: Factor, channels: int, start: str) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Linear(len(factor.values), channels)
        if start == "one":
            nn.init.ones_(self.project.bias)

    def forward(self) -> Tensor:
        """The scaling, (channels,) float32."""
        # A sum of products rather than a matrix product, which autocast would round.
        return (self.project.weight * self.factor.values).sum(1) + self.project.bias
