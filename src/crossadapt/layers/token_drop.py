"""Random dropping of patch tokens while a vision tower trains (FLIP, arXiv 2212.00794)."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_tokens(tokens: Tensor, share: float) -> Tensor:
    """Keep the class token and a random subset of the patch tokens, another one for each picture.

    Args:
        tokens: (B, 1 + N, D), class token first, position embeddings already added.
        share: share of the N patch tokens that is dropped, in [0, 1).

    Returns:
        (B, 1 + K, D) with ``K = max(1, round(N * (1 - share)))``, in the original order.
    """
    batch, length, width = tokens.shape
    keep = max(1, round((length - 1) * (1 - share)))
    order = torch.rand(batch, length - 1, device=tokens.device).argsort(1)[:, :keep]
    order = torch.cat([order.new_zeros(batch, 1), order.sort(1).values + 1], 1)
    return tokens.gather(1, order[..., None].expand(-1, -1, width))
