"""Carry out `Join`: a trained fusion of a fused backbone's members, while its adapter is active.

The module of a `Join` offers

* ``encode(tower, seen) -> (B, P)``: unit vectors from the members' token features;
* ``weights() -> (1 + n,)``: how the fused embedding mixes these vectors and the members' own, see
  `crossadapt.backbones.fused`.

It may hold persistent buffers (running statistics); they are saved with the adapter. A task that
trains it says so with ``trains_join = True``; training with any other is refused, because parts of
it would stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from crossadapt.adapters.dial import dialled
from crossadapt.backbones.fused import ROOM, FusedBackbone
from crossadapt.backbones.tower_tokens import TokenFeatures
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.adapters.plan import Join
    from crossadapt.backbones.base import Backbone


class Joining:
    """What an adapter with a `Join` asks of the backbone's encode functions."""

    def __init__(self, adapter: AttachedAdapter, module: nn.Module) -> None:
        self.adapter = adapter
        self.module: Any = module

    @property
    def on(self) -> bool:
        """Whether the fusion takes part now."""
        return dialled(self.adapter) > 0.0

    def encode(self, tower: Literal["vision", "text"], seen: Sequence[TokenFeatures]) -> Tensor:
        """Unit vectors (B, P) of the trained fusion."""
        return self.module.encode(tower, seen)

    def weights(self, frozen: Tensor) -> Tensor:
        """``(1 - s) frozen + s trained``, so cosines are mixed in these shares."""
        strength = dialled(self.adapter)
        trained = self.module.weights()
        return trained if strength == 1.0 else (1 - strength) * frozen + strength * trained


def check_join(backbone: Backbone, item: Join, method: str) -> str:
    """Refuse a fusion that does not fit; the key of the item in its plan.

    Raises:
        UserError: the backbone is not a fused one, or the vectors or weights have a wrong shape.
    """
    if not isinstance(backbone, FusedBackbone):
        raise UserError(
            f"{method} fuses several backbones, and {backbone.source} is one",
            where="backbone",
            fix="name two or more: --backbone fuse:A+B",
        )
    for tower in ("vision", "text"):
        shape = _probe(backbone, item.module, tower)
        if len(shape) != 2 or shape[0] != 1 or not 1 <= shape[1] <= ROOM:
            raise UserError(
                f"the fusion of {method} gives {shape} for one input",
                where=f"{tower}.join",
                fix=f"it must give (1, P) with P from 1 to {ROOM}",
            )
    module: Any = item.module
    shape = tuple(module.weights().shape)
    if shape != (1 + len(backbone.members),):
        raise UserError(
            f"the fusion of {method} has weights of shape {shape}",
            where="join",
            fix=f"it must have {1 + len(backbone.members)}",
        )
    return "a fusion"


def _probe(
    backbone: FusedBackbone, module: Any, tower: Literal["vision", "text"]
) -> tuple[int, ...]:
    """Shape of what the fusion gives for one input of two tokens."""
    device = next(module.parameters()).device
    if device.type == "meta":
        return 1, 1  # nothing can be run, only counted
    seen = [
        TokenFeatures(
            torch.ones(1, member.embedding_dim, device=device),
            torch.ones(1, 2, member.width(tower), device=device),
            torch.ones(1, 2, dtype=torch.bool, device=device),
        )
        for member in backbone.members
    ]
    mode = module.training
    module.eval()
    try:
        with torch.no_grad():
            return tuple(module.encode(tower, seen).shape)
    finally:
        module.train(mode)
