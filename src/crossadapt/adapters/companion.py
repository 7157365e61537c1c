"""What a `Companion` that scores pairs offers to tasks: the scores, and terms of the loss.

(One that scores classes is described in `crossadapt.adapters.classifier`.) It is a module with

* ``score(images (N, D), texts (M, D)) -> (N, M)``: cosines of pairs, where it sees both sides;
* ``plain_weight``: weight of the task's loss on the plain cosines of the encoded features, beside
  the one on the scores, which has weight 1;
* ``terms(features, views, same) -> {name: weighted scalar}``: further terms of the loss, from the
  features of both streams and the frozen model's features of their second views ("image" and
  "text" in both), with `same` (N, N) telling rows that are no negatives of each other. A task that
  calls it must make the views, and says so with ``calls_companion = True``; training with any
  other task is refused, because it would leave the companion as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from crossadapt.adapters.attach import active

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

BLOCK = 2**15
"""Pairs scored at a time."""


class PairCompanion(Protocol):
    """See the module's text."""

    plain_weight: float

    def score(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines (N, M) of features (N, D) and (M, D)."""
        ...

    def terms(
        self, features: Mapping[str, Tensor], views: Mapping[str, Tensor], same: Tensor
    ) -> dict[str, Tensor]:
        """Weighted terms of the loss by name."""
        ...


def companion(backbone: Backbone) -> PairCompanion | None:
    """The active adapter's companion if it scores pairs, else None."""
    adapter = active(backbone)
    found = None if adapter is None else adapter.companion
    return cast("PairCompanion", found) if hasattr(found, "score") else None


def pair_scores(
    backbone: Backbone, images: Tensor, texts: Tensor, block: int | None = BLOCK
) -> Tensor:
    """Score every picture with every text, by the active adapter's companion if it has one.

    Args:
        backbone: with whatever adapter is active, at its strength s: ``cos + s (score - cos)``.
        images: features (N, D) from `encode_image`, any length.
        texts: features (M, D) from `encode_text`. They are the list of candidates: with most
            companions a score depends on the whole list, so it cannot be kept in an index.
        block: pairs scored at a time; None for all at once.

    Returns:
        Cosines (N, M) in float32; the plain ones without companion.
    """
    images, texts = images.float(), texts.float()
    plain = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    judge, adapter = companion(backbone), active(backbone)
    if judge is None or adapter is None or adapter.strength == 0.0:
        return plain
    rows = len(images) if block is None else max(1, block // max(1, len(texts)))
    found = torch.cat([judge.score(part, texts) for part in images.split(max(1, rows))])
    return found if adapter.strength == 1.0 else plain + adapter.strength * (found - plain)
