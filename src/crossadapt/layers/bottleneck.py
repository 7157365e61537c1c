"""Residual bottleneck whose up-projection may be partly shared with other bottlenecks.

z = QuickGELU(x Wd^T + bd)              (..., r)
y = x + concat[z Wu^T + bu, z Ws^T + bs]  private channels first, shared channels last
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU: ``x * sigmoid(1.702 x)``, any shape."""
    return x * torch.sigmoid(1.702 * x)


def _near_zero(linear: nn.Linear, std: float) -> nn.Linear:
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear


def shared_up(r: int, channels: int, init_std: float) -> nn.Linear:
    """An up-projection (r -> channels) to hand to several `Bottleneck`s."""
    return _near_zero(nn.Linear(r, channels), init_std)


class Bottleneck(nn.Module):
    """``x + up(dropout(quick_gelu(down(x))))`` for x (..., width).

    Args:
        width: channels of the input and output.
        r: bottleneck width.
        shared: up-projection (r -> d_s) filling the last d_s channels; the same object may be
            given to bottlenecks of other widths. None for an ordinary adapter.
        dropout: probability, between the activation and the up-projections.
        init_std: standard deviation of the initial weights; biases start at 0.
    """

    by_token = True

    def __init__(
        self,
        width: int,
        r: int,
        shared: nn.Linear | None = None,
        *,
        dropout: float = 0.0,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        private = width - (shared.out_features if shared is not None else 0)
        self.down = _near_zero(nn.Linear(width, r), init_std)
        self.dropout = nn.Dropout(dropout)
        self.up = _near_zero(nn.Linear(r, private), init_std) if private else None
        self.shared = shared

    def up_projection(self) -> tuple[Tensor, Tensor]:
        """The whole up-projection: weight (width, r) and bias (width,), shared channels last."""
        parts = [part for part in (self.up, self.shared) if part is not None]
        if len(parts) == 1:
            return parts[0].weight, parts[0].bias
        return torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])

    def forward(self, x: Tensor) -> Tensor:
        """Adapt x (..., width); the result has the dtype of x or wider."""
        # Weights stay float32; a half-precision backbone outside autocast computes in its own.
        weight, bias = self.up_projection()
        down = functional.linear(x, self.down.weight.to(x.dtype), self.down.bias.to(x.dtype))
        z = self.dropout(quick_gelu(down))
        # One product for private and shared channels: concatenating two r-wide weights is cheap,
        # concatenating two activations is not.
        return x + functional.linear(z, weight.to(z.dtype), bias.to(z.dtype))


class ParallelBottleneck(Bottleneck):
    """``scale * up(dropout(relu(down(x))))`` for x (..., width): a branch without residual.

    It starts at zero: the up-projection is zero, the down-projection drawn as `nn.Linear` draws it.

    Args:
        width: channels of the input and output.
        r: bottleneck width.
        scale: fixed factor on the output.
        dropout: probability, between the activation and the up-projection.
    """

    def __init__(self, width: int, r: int, *, scale: float, dropout: float = 0.0) -> None:
        super().__init__(width, r, dropout=dropout, init_std=0.0)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the output of the module that x also went into, same shape as x."""
        weight, bias = self.up_projection()
        down = functional.linear(x, self.down.weight.to(x.dtype), self.down.bias.to(x.dtype))
        z = self.dropout(torch.relu(down))
        return self.scale * functional.linear(z, weight.to(z.dtype), bias.to(z.dtype))
