"""Does this text belong to this picture? A small head on both vectors, taught with near misses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 1e-4
"""Added to the chance of every true negative, so that none is impossible."""


class MatchingHead(nn.Module):
    """Logit of a pair from ``[u; v; |u - v|; u * v]`` by one linear layer.

    Parameters: ``4 P + 1``, and two with `norm`.

    Args:
        width: P, channels of u and of v.
        dropout: probability, in front of the layer.
        norm: a batch norm of the one channel behind it (HADA's first stage).
    """

    def __init__(self, width: int, dropout: float, norm: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * width, 1)
        self.norm = nn.BatchNorm1d(1) if norm else None
        nn.init.kaiming_normal_(self.linear.weight)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Logits (N,) of pairs u, v (N, P)."""
        x = self.linear(self.dropout(torch.cat([u, v, (u - v).abs(), u * v], 1)))
        return (x if self.norm is None else self.norm(x)).squeeze(1)


def draw_negatives(similarity: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """For every row a column that does not belong to it, the likelier the more similar it is.

    The chance is ``softmax(similarity) + 1e-4`` over the columns that do not belong to the row,
    and exactly 0 for those that do. Rows to which all columns belong get none.

    Args:
        similarity: logits (N, M).
        same: bool (N, M), what belongs together.

    Returns:
        The rows that have a negative (K,), and a column for each of them (K,), both int64.
    """
    rows = (~same).any(1).nonzero().squeeze(1)
    if not len(rows):
        return rows, rows
    chance = similarity[rows].float().softmax(1) + SMALLEST
    return rows, torch.multinomial(chance.masked_fill(same[rows], 0.0), 1).squeeze(1)


def matching_loss(
    head: MatchingHead,
    images: Tensor,
    texts: Tensor,
    to_text: Tensor,
    to_image: Tensor,
    same: Tensor,
) -> Tensor | None:
    """Binary cross-entropy of B true pairs and, per picture and per text, one near miss.

    Args:
        head: judges pairs.
        images: (B, P), row by row the partner of `texts`.
        texts: (B, P).
        to_text: logits (B, B) of pictures with texts, which decide what a near miss is.
        to_image: logits (B, B) of texts with pictures.
        same: bool (B, B), pictures (rows) and texts that belong together.

    Returns:
        A scalar; None when all rows belong together, so that there is nothing to tell apart.
    """
    pictures, wrong_texts = draw_negatives(to_text.detach(), same)
    captions, wrong_pictures = draw_negatives(to_image.detach(), same.T)
    if not len(pictures) or not len(captions):
        return None
    u = torch.cat([images, images[pictures], images[wrong_pictures]])
    v = torch.cat([texts, texts[wrong_texts], texts[captions]])
    truth = torch.zeros(len(u), device=u.device)
    truth[: len(images)] = 1.0
    return F.binary_cross_entropy_with_logits(head(u, v).float(), truth)
