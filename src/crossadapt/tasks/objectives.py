"""Contrastive losses that know which pairs belong together, over one or several processes.

InfoNCE: Radford et al. 2021 (CLIP), arXiv 2103.00020; sigmoid loss: Zhai et al. 2023 (SigLIP),
arXiv 2303.15343. Both take all pairs of a batch; `positives` marks the pairs that match, so
that several captions of one picture are never pushed apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def cosine(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine similarities (N, M) of features (N, D) and (M, D), in float32."""
    return F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T


def info_nce(
    images: Tensor, texts: Tensor, scale: Tensor | float, positives: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy of every picture over all texts and every text over all pictures.

    `L = (CE(S, P) + CE(S^T, P^T)) / 2` with `S = scale * cos(images, texts)` and the target of a
    row spread evenly over its positives. Without duplicates this is the plain diagonal loss.

    Args:
        images: features (N, D), any length.
        texts: features (N, D) of the matching texts, row by row.
        scale: factor on cosines, `exp(logit_scale)`.
        positives: bool (N, N); [i, j] is true when text j describes picture i. The diagonal
            alone when None.
    """
    return info_nce_of(cosine(images, texts), scale, positives)


def info_nce_of(
    similarity: Tensor,
    scale: Tensor | float,
    positives: Tensor | None = None,
) -> Tensor:
    """`info_nce` from similarities (N, N) of pictures or clips (rows) with texts (columns)."""
    logits = scale * similarity
    if positives is None:
        positives = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return (_spread(logits, positives) + _spread(logits.T, positives.T)) / 2


def preference(own: Tensor, wrong: Tensor, scale: Tensor | float) -> Tensor:
    """Each text chooses between two: `mean_i -log sigmoid(scale * (own_i - wrong_i))`.

    Args:
        own: similarities (N,) of texts with what they describe.
        wrong: similarities (N,) of the same texts with something else.
        scale: factor on similarities.

    Equal similarities cost log 2 and have no gradient where they are equal by construction.
    """
    return F.softplus(scale * (wrong - own)).mean()


def _spread(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over rows of the cross-entropy against targets spread evenly over the positives."""
    targets = positives.to(logits.dtype)
    targets = targets / targets.sum(dim=1, keepdim=True).clamp_min(1)
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def sigmoid_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    positives: Tensor | None = None,
) -> Tensor:
    """One binary decision per pair: `-mean_i sum_j log sigmoid(z_ij * (scale * cos_ij + bias))`.

    `z_ij` is 1 for positives and -1 otherwise. Arguments as for `info_nce`; `bias` is the
    backbone's `logit_bias`.
    """
    return sigmoid_loss_of(cosine(images, texts), scale, bias, positives)


def sigmoid_loss_of(
    similarity: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    positives: Tensor | None = None,
) -> Tensor:
    """`sigmoid_loss` from similarities (N, N) of pictures or clips (rows) with texts (columns)."""
    logits = scale * similarity + bias
    if positives is None:
        positives = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    signs = positives.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(signs * logits).sum(dim=1).mean()


def same(*keys: Tensor) -> Tensor:
    """Positives (N, N): rows i and j match when any of the given keys (N,) is equal."""
    matches = [key[:, None] == key[None, :] for key in keys]
    return torch.stack(matches).any(dim=0)


def text_keys(texts: Sequence[str]) -> Tensor:
    """A key (N,) for each text, equal for texts that differ in case or spaces only."""
    folded = [" ".join(text.casefold().split()) for text in texts]
    return torch.from_numpy(np.unique(folded, return_inverse=True)[1])


def gather(x: Tensor) -> Tensor:
    """Concatenate a tensor's rows over all processes, in order of rank; gradients flow back.

    Row counts may differ between processes. The backward pass sums the gradients all processes
    have for a row before handing the row its own, so that, with gradients of parameters averaged
    over processes, the result equals one process on the whole batch. The tensor itself when there
    is only one process.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x) if x.requires_grad else _gather(x)[0]


def _gather(x: Tensor) -> tuple[Tensor, list[int]]:
    """Rows of all processes and how many each gave; short ones are padded on the way."""
    world = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = [int(count) for count in counts]
    padded = x.new_zeros((max(sizes), *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sizes


class _Gather(torch.autograd.Function):
    """`_gather` with a backward pass that sums over processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows, sizes = _gather(x)
        rank = dist.get_rank()
        ctx.start, ctx.count = sum(sizes[:rank]), sizes[rank]
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.count]
