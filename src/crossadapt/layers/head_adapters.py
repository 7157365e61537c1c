"""Small branches inside an attention, one per head, in front of its output projection.

h is the attention's input, head_i its i-th head of d channels, C = heads * d:

    prefix   D_i = softmax(h P_i) U_i              P_i (C, l), U_i (l, d)
             head_i <- (1 - g_i) head_i + g_i D_i
    adapter  head_i <- head_i + s (ReLU(h A_i + b_i) B_i + c_i)      A_i (C, r), B_i (r, d)

With the gate ``mass``, g is the share that l prefix keys would get in the head's own softmax, and
the result is prefix tuning itself; see He et al., arXiv 2110.04366.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Gate = Literal["scalar", "mass", "add"]
GATES: tuple[Gate, ...] = ("scalar", "mass", "add")


class HeadPrefix(nn.Module):
    """A softmax bottleneck per head, joined to the head by a gate.

    Parameters: ``heads (C l + l d)``, and one per head with the gate ``scalar``.

    Args:
        width: C.
        heads: number of heads, a divisor of `width`.
        length: l, the number of prefixes.
        gate: ``scalar``: one trained number per head, 0 at first, so that the start is exactly the
            frozen head. ``mass``: computed from the logits; no such start. ``add``: no gate, the
            branch is added; U starts at 0.
    """

    def __init__(self, width: int, heads: int, length: int, gate: Gate = "scalar") -> None:
        super().__init__()
        self.heads, self.length, self.kind = heads, length, gate
        self.down = nn.Parameter(torch.empty(heads * length, width))
        self.up = nn.Parameter(torch.zeros(heads, length, width // heads))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        if gate != "add":
            nn.init.uniform_(self.up, -(length**-0.5), length**-0.5)
        self.gate = nn.Parameter(torch.zeros(heads)) if gate == "scalar" else None

    def forward(self, heads: Tensor, x: Tensor, mass: Tensor | None = None) -> Tensor:
        """Gated heads (..., T, C).

        Args:
            heads: all heads side by side (..., T, C).
            x: the attention's input (..., T, C).
            mass: log of the sum of the exponentials of every query's attention logits
                (..., heads, T); needed by the gate ``mass``, and by no other.
        """
        logits = functional.linear(x, self.down.to(x.dtype)).float()
        logits = logits.unflatten(-1, (self.heads, self.length))
        update = torch.einsum("...hl,hld->...hd", logits.softmax(-1), self.up.float())
        split = heads.unflatten(-1, (self.heads, -1))
        if self.kind == "add":
            return (split + update.to(split.dtype)).flatten(-2)
        if self.gate is not None:
            gate = self.gate[:, None]
        elif mass is not None:
            share = torch.sigmoid(logits.logsumexp(-1) - mass.transpose(-1, -2))
            gate = share[..., None]
        else:
            raise RuntimeError("the gate 'mass' needs the mass of the attention logits")
        return (split + gate * (update - split)).to(heads.dtype).flatten(-2)


class HeadAdapter(nn.Module):
    """A bottleneck per head, side by side: ``s (ReLU(x A + b) B + c)``; starts at 0.

    Parameters: ``heads (C r + r + r d) + C``.

    Args:
        width: C.
        heads: number of heads, a divisor of `width`.
        r: bottleneck width of each head.
        scale: s, fixed.
        dropout: probability behind the ReLU.
    """

    def __init__(
        self, width: int, heads: int, r: int, *, scale: float = 0.5, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.down = nn.Linear(width, heads * r)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        self.up = nn.Parameter(torch.zeros(heads, r, width // heads))
        self.bias = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to all heads side by side, (..., C), for the attention's input x."""
        z = functional.linear(x, self.down.weight.to(x.dtype), self.down.bias.to(x.dtype))
        z = self.dropout(torch.relu(z)).unflatten(-1, (self.heads, -1))
        y = torch.einsum("...hr,hrd->...hd", z, self.up.to(z.dtype)).flatten(-2)
        return self.scale * (y + self.bias.to(y.dtype))


class HeadBranches(nn.Module):
    """A prefix, an adapter, or first the one and then the other, for `adapters.plan.Heads`."""

    def __init__(self, prefix: HeadPrefix | None, adapter: HeadAdapter | None) -> None:
        super().__init__()
        self.prefix, self.adapter = prefix, adapter

    @property
    def wants_mass(self) -> bool:
        """Whether `forward` needs the mass of the attention logits."""
        return self.prefix is not None and self.prefix.kind == "mass"

    def forward(self, heads: Tensor, x: Tensor, mass: Tensor | None = None) -> Tensor:
        """New heads (..., T, C) from the heads and the attention's input."""
        if self.prefix is not None:
            heads = self.prefix(heads, x, mass)
        return heads if self.adapter is None else heads + self.adapter(x).to(heads.dtype)
