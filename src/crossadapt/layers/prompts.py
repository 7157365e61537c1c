"""Learned tokens for the layers of a tower: a tower's own, or made from another tower's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class PromptBank(nn.Module):
    """`depth` layers of `count` learned tokens of `width` channels.

    Args:
        depth: layers with tokens of their own.
        count: tokens per layer.
        width: channels.
        std: standard deviation of the normal start.
        uniform: half-width of a uniform start, used in place of the normal one when given.
    """

    def __init__(
        self, depth: int, count: int, width: int, *, std: float = 0.02, uniform: float | None = None
    ) -> None:
        super().__init__()
        draw = [torch.empty(count, width) for _ in range(depth)]
        for tokens in draw:
            if uniform is None:
                nn.init.normal_(tokens, std=std)
            else:
                nn.init.uniform_(tokens, -uniform, uniform)
        self.tokens = nn.ParameterList(draw)

    def start_from(self, vectors: Tensor | None) -> PromptBank:
        """Let the first layer's tokens start from `vectors` (count, width), if any."""
        if vectors is not None:
            with torch.no_grad():
                self.tokens[0].copy_(vectors)
        return self

    def forward(self, layer: int) -> Tensor:
        """The tokens (count, width) of a layer."""
        return self.tokens[layer]


class CoupledPrompts(nn.Module):
    """Tokens of one tower as linear images of another's: ``F_i(P_i) = P_i W_i^T + b_i``.

    The map of layer 0 is drawn by itself. Those of the deeper layers start as copies of one
    another and are trained apart.

    Args:
        source: tokens of the other tower, (count, its width) per layer.
        source_width: its channels.
        width: channels of this tower.
    """

    def __init__(self, source: PromptBank, source_width: int, width: int) -> None:
        super().__init__()
        self.source = source
        first = nn.Linear(source_width, width)
        deeper = nn.Linear(source_width, width)
        copies = [copy.deepcopy(deeper) for _ in range(len(source.tokens) - 1)]
        self.maps = nn.ModuleList([first, *copies])

    def forward(self, layer: int) -> Tensor:
        """The tokens (count, width) of a layer."""
        return self.maps[layer](self.source(layer))
