"""Random dropping of patch tokens while a vision tower trains (FLIP, arXiv 2212.00794)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def drop_tokens(
    tokens: Tensor, share: float, prefix: int = 1, together: Tensor | None = None
) -> Tensor:
    """Keep a random subset of the patch tokens, another one for each picture.

    Args:
        tokens: (B, prefix + N, D), position embeddings already added.
        share: share of the N patch tokens that is dropped, in [0, 1).
        prefix: tokens in front of the patches that always stay: 1 for a class token, else 0.
        together: numbers from 0, (B,); pictures of equal number lose the same places.

    Returns:
        (B, prefix + K, D) with ``K = max(1, round(N * (1 - share)))``, in the original order.
    """
    batch, length, width = tokens.shape
    patches = length - prefix
    keep = max(1, round(patches * (1 - share)))
    draws = batch if together is None else int(together.max()) + 1
    kept = torch.rand(draws, patches, device=tokens.device).argsort(1)[:, :keep].sort(1).values
    if together is not None:
        kept = kept[together.to(kept.device)]
    front = torch.arange(prefix, device=tokens.device).expand(batch, -1)
    order = torch.cat([front, kept + prefix], 1)
    return tokens.gather(1, order[..., None].expand(-1, -1, width))


@contextmanager
def dropping(embeddings: nn.Module, share: float, together: Tensor | None = None) -> Iterator[None]:
    """Inside the block, a vision tower loses a `share` of its patch tokens after the embedding.

    Args:
        embeddings: gives (B, tokens, D); has a `class_embedding` if the first token is one.
        share: as for `drop_tokens`; 0 does nothing.
        together: as for `drop_tokens`.
    """
    if share == 0:
        yield
        return
    prefix = int(hasattr(embeddings, "class_embedding"))
    # Before any other hook: what an adapter adds to the sequence is no patch, and stays.
    hook = embeddings.register_forward_hook(
        lambda _module, _inputs, tokens: drop_tokens(tokens, share, prefix, together),
        prepend=True,
    )
    try:
        yield
    finally:
        hook.remove()
