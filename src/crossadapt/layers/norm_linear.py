"""A linear layer with dropout in front of it, or with batch norm and dropout behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormLinear(nn.Module):
    """Linear layer with Kaiming-normal weights.

    Args:
        inputs: channels in.
        outputs: channels out.
        dropout: probability; in front of the layer, or behind it with `norm`.
        norm: batch norm behind the layer.
    """

    def __init__(self, inputs: int, outputs: int, dropout: float, norm: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(self.linear.weight)
        self.norm = nn.BatchNorm1d(outputs) if norm else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(..., inputs) to (..., outputs); rows where `mask` is False do not count in the norm."""
        if self.norm is None:
            return self.linear(self.dropout(x))
        return self.dropout(masked_norm(self.norm, self.linear(x), mask))


def masked_norm(norm: nn.BatchNorm1d, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Batch norm over all rows of x (..., C) where `mask` (...) is True; the others become 0.

    Running statistics are written only while gradients are recorded, so that a step which encodes
    its rows twice (the gradient cache) counts them once.
    """
    there = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
    rows = x[there].float()
    if norm.training and not torch.is_grad_enabled():
        done = F.batch_norm(rows, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
    else:
        done = norm(rows)
    out = done.new_zeros(x.shape)
    out[there] = done
    return out
