"""Adapters that let pooled features of pictures and of texts attend to each other.

One stream's features are x, the other's y; E channels, H hidden ones, every residual is followed
by a LayerNorm (post-norm), D is dropout:

    separate  x1 = LN(x + D SA(x, x, x)); x2 = LN(x1 + D CA(x1, y, y)); x3 = LN(x2 + D FFN(x2))
              z  = x + eta (x3 - x), eta a trained scalar that starts at 0
    shared    x1 = LN(x + D A(x, x, x) + D A(x, y, y));                  z  = LN(x1 + D FFN(x1))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _attend(attention: Any, x: Tensor, y: Tensor) -> Tensor:
    """Queries x (B, Q, E) over keys and values y (B, K, E): the output alone, not the weights."""
    return attention(x, y, y, need_weights=False)[0]


class SeparateStream(nn.Module):
    """One modality's adapter with attentions of its own, in sequence.

    Parameters: ``2 (4 E^2 + 4 E) + 2 E H + H + E + 6 E``, and the scalar eta.

    Args:
        width: E, a multiple of `heads`.
        heads: attention heads.
        hidden: H.
        dropout: probability, on the output of every residual branch.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.eta = nn.Parameter(torch.zeros(()))

    def gather(self, x: Tensor) -> Tensor:
        """x1 for a sequence (B, K, E)."""
        return self.norms[0](x + self.dropout(_attend(self.self_attention, x, x)))

    def look(self, x: Tensor, y: Tensor) -> Tensor:
        """What queries (B, Q, E) see in the other stream (B, K, E), before the residual."""
        return _attend(self.cross_attention, x, y)

    def finish(self, x: Tensor, x1: Tensor, seen: Tensor) -> Tensor:
        """z from the input, x1 and what was seen; all broadcast to the shape of the last two."""
        seen = seen.expand(torch.broadcast_shapes(seen.shape, x1.shape))
        x2 = self.norms[1](x1 + self.dropout(seen))
        x3 = self.norms[2](x2 + self.dropout(self.down(torch.relu(self.up(x2)))))
        return x + self.eta * (x3 - x)


class SeparateAdapters(nn.Module):
    """Both streams, for each picture by itself: no picture sees another.

    The picture's query attends to all M texts; the texts attend to each other, then each of them
    to the one picture. A single key takes all the attention, so in those two places (the
    picture's self-attention, the texts' cross-attention) the query and key weights have no
    effect and get no gradient.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.image = SeparateStream(width, heads, hidden, dropout)
        self.text = SeparateStream(width, heads, hidden, dropout)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, E) and texts (M, E) to images (N, E) and, per image, texts (N, M, E)."""
        among, shown = self._prepare(images, texts)
        return self._images(images, texts), self.text.finish(texts[None], among, shown)

    def pairs(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with each text for the image of its own row only: (N, E) and (N, E)."""
        among, shown = self._prepare(images, texts)
        return self._images(images, texts), self.text.finish(texts, among[0], shown[:, 0])

    def _images(self, images: Tensor, texts: Tensor) -> Tensor:
        alone = images[:, None]
        own = self.image.gather(alone)
        # The pictures as queries of one sequence: a query's result does not depend on the others,
        # and the texts' keys and values are computed once.
        seen = self.image.look(own.transpose(0, 1), texts[None]).transpose(0, 1)
        return self.image.finish(alone, own, seen).squeeze(1)

    def _prepare(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The texts among each other (1, M, E), and what each image shows them (N, 1, E).

        With one key every query gets the same answer, so it is asked for once per image.
        """
        alone = images[:, None]
        return self.text.gather(texts[None]), self.text.look(alone, alone)


class SharedStream(nn.Module):
    """One modality's adapter with one attention for both terms.

    Parameters: ``4 E^2 + 4 E + 2 E H + H + E + 4 E``. Arguments as for `SeparateStream`.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (1, N, E) over itself and over y (1, M, E)."""
        own, other = _attend(self.attention, x, x), _attend(self.attention, x, y)
        u = self.norms[0](x + self.dropout(own) + self.dropout(other))
        return self.norms[1](u + self.dropout(self.down(torch.relu(self.up(u)))))


class SharedAdapters(nn.Module):
    """Both streams over whole batches: a row's result depends on the rows beside it."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.image = SharedStream(width, heads, hidden, dropout)
        self.text = SharedStream(width, heads, hidden, dropout)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, E) and texts (M, E) to images (N, E) and texts (1, M, E), for any image."""
        x, y = images[None], texts[None]
        return self.image(x, y).squeeze(0), self.text(y, x)

    def pairs(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, the texts as (M, E)."""
        adapted, shown = self(images, texts)
        return adapted, shown.squeeze(0)
