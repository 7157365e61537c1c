"""``x sigmoid(1.702 x)``, CLIP's activation, that keeps one tensor for the backward pass.

Composed of three operations, as transformers has it, autograd keeps three of the widest tensors of
a frozen block. Here only x is kept and the sigmoid is computed again. Both passes do the same
operations in the same order as the composition, so values and gradients are the same bits, in
every number format. Adapters keep the composition: theirs is narrow, and every exporter knows it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_FACTOR = 1.702


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(_FACTOR * x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        [x], [grad] = ctx.saved_tensors, grads
        gate = torch.sigmoid(_FACTOR * x)
        through_gate = torch.ops.aten.sigmoid_backward(grad * x, gate) * _FACTOR
        return grad * gate + through_gate


class QuickGELU(nn.Module):
    """Quick GELU of a tensor of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and format."""
        return _QuickGELU.apply(x)
