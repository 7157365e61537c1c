"""What a fusion tower needs to know while it runs: that it does, and how much each frame counts.

Frame-aware attention is the parameter-free part of UniAdapter (Lu et al. 2023, arXiv 2302.06605)
for clips: with e_f the cosine of the text and frame f,

    w = F softmax(e / temperature)          mean 1 over the F frames, no gradient

multiplies the cross-attention keys of the patches of frame f; those of its class token stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional

_FUSING: ContextVar[bool] = ContextVar("crossadapt_fusing", default=False)


@contextmanager
def fusing() -> Iterator[None]:
    """Inside the block, layers that serve the text and the fusion tower run as the latter."""
    token = _FUSING.set(True)
    try:
        yield
    finally:
        _FUSING.reset(token)


def is_fusing() -> bool:
    """Whether the fusion tower is running, in this thread and at this moment."""
    return _FUSING.get()


def frame_weights(
    texts: Tensor, frames: Tensor, mask: Tensor | None = None, temperature: float = 4.0
) -> Tensor:
    """Weights (B, F) of the frames of clips for their texts, without gradient.

    Args:
        texts: features (B, D) in the shared space, any length.
        frames: features (B, F, D) of the frames there.
        mask: bool (B, F), False where there is no frame; such frames get weight 0, and the mean
            over the others is 1.
        temperature: divides the cosines; 4 in the released code.
    """
    with torch.no_grad():
        unit = functional.normalize(frames.float(), dim=-1)
        cosines = torch.einsum("bd,bfd->bf", functional.normalize(texts.float(), dim=-1), unit)
        if mask is None:
            mask = torch.ones_like(cosines, dtype=torch.bool)
        scores = (cosines / temperature).masked_fill(~mask, -torch.inf)
        return scores.softmax(dim=1) * mask.sum(dim=1, keepdim=True)


def key_factors(weights: Tensor, tokens: int) -> Tensor:
    """Factors (B, F * tokens) on cross-attention keys: 1 for class tokens, else the frame's weight.

    Args:
        weights: (B, F), from `frame_weights`.
        tokens: tokens of a frame, its class token first.
    """
    factors = weights[..., None].repeat(1, 1, tokens)
    factors[..., 0] = 1.0
    return factors.flatten(1)
