"""The MLP of a tower's last layer, computed for the pooled token only.

Behind the last attention no token sees another, and of what the last layer gives, pooling takes
one token. Its norm and MLP, two thirds of the layer's products, are therefore needed there only,
forward and, in training, backward. What the MLP gives is added to the residual stream of all
tokens; it is right at the pooled one, and nothing reads the others.

That nothing does is checked at every call. A hook behind the last attention may read what it likes,
unless a true attribute `by_token` says that it treats every token by itself. With one hook that
does not say so, the whole layer is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def at_pooled_token(tower: Any, place: int | Tensor) -> Iterator[None]:
    """Inside the block, `tower` computes its last MLP for one token of each input.

    Args:
        tower: a text or vision transformer of Hugging Face's CLIP or SigLIP layout.
        place: which token, for all inputs or int64 (B,).
    """
    block = tower.encoder.layers[-1]
    if not _unread(tower, block):
        yield
        return
    handle = block.layer_norm2.register_forward_pre_hook(_OneToken(place))
    try:
        yield
    finally:
        handle.remove()


class _OneToken:
    """In front of the last layer's second norm: of (B, T, width) one token, (B, 1, width)."""

    by_token = True

    def __init__(self, place: int | Tensor) -> None:
        self.place, self.thread = place, threading.get_ident()

    def __call__(self, norm: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
        if threading.get_ident() != self.thread:
            return None  # of another call, on the same model at the same time
        x = inputs[0]
        if isinstance(self.place, int):
            return x.narrow(1, self.place, 1)
        return x[torch.arange(x.shape[0], device=x.device), self.place.to(x.device)].unsqueeze(1)


def _unread(tower: Any, block: Any) -> bool:
    """Whether nothing but modules that work token by token sees what the last MLP makes."""
    entry = {tower.embeddings, tower.encoder}
    others = [m for child in tower.children() if child not in entry for m in child.modules()]
    inner = [block.layer_norm2, *block.mlp.modules(), *others]
    hooks = [hook for m in inner for hook in m._forward_pre_hooks.values()]
    for module in (tower, tower.encoder, block, *inner):
        hooks += [*module._forward_hooks.values(), *module._backward_hooks.values()]
    return all(getattr(hook, "by_token", False) for hook in hooks)
