"""A second view of every row, seen by the frozen model: what a companion's loss compares with.

The view of a picture is another crop (or, for drawings, another pose or style). The view of a
text is another text of the same group; a text without one loses some of its words. Texts that a
language model wrote about a picture are used by giving them as further captions of that picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from crossadapt.adapters.attach import frozen
from crossadapt.adapters.companion import PairCompanion
from crossadapt.errors import UserError
from crossadapt.layers.drawing_augmentation import POSE_ONLY, DrawingAugmentation
from crossadapt.layers.random_crop import RandomCrop
from crossadapt.tasks.encode import cut, training_features

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone
    from crossadapt.data.manifest import Manifest
    from crossadapt.tasks.base import Features, Inputs

ViewKind = Literal["crop", "pose", "restyle"]
PICTURE_VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "crop": RandomCrop(),
    "pose": POSE_ONLY,
    "restyle": DrawingAugmentation(),
}
SUFFIX = "_view"
WORD_DROP = 0.2
"""Chance of a word to be left out of a text that has no other text in its group."""


class SecondViews:
    """Makes the second views of a batch.

    Args:
        backbone: its tokenizer is used.
        train: the rows.
        kind: what happens to pictures, a key of `PICTURE_VIEWS`.
    """

    def __init__(self, backbone: Backbone, train: Manifest, kind: ViewKind) -> None:
        self._tokenize = backbone.tokenize
        self._texts = np.asarray(train.texts, dtype=object)
        self._groups = train.groups
        self._order = np.argsort(train.groups, kind="stable")
        counts = np.bincount(train.groups)
        self._first = np.cumsum(counts) - counts
        self._counts = counts
        self._change = PICTURE_VIEWS[kind]

    def __call__(self, rows: np.ndarray, pixels: Tensor) -> dict[str, Inputs]:
        """Streams ``image_view`` and ``text_view`` of rows whose pictures are (B, 3, H, W)."""
        draws = torch.rand(len(rows)).tolist()
        texts = [self._other(int(row), draw) for row, draw in zip(rows, draws, strict=True)]
        tokens = cut(self._tokenize(texts))
        return {
            f"image{SUFFIX}": (self._change(pixels),),
            f"text{SUFFIX}": (tokens.ids, tokens.mask),
        }

    def _other(self, row: int, draw: float) -> str:
        """Another text of the row's group, or its own with fewer words."""
        text, group = self._texts[row], self._groups[row]
        start, count = self._first[group], self._counts[group]
        others = [r for r in self._order[start : start + count] if self._texts[r] != text]
        if others:
            return self._texts[others[int(draw * len(others))]]
        words = text.split()
        kept = torch.rand(len(words)) >= WORD_DROP
        left = [word for word, keep in zip(words, kept.tolist(), strict=True) if keep]
        return " ".join(left) if left else text


def frozen_features(backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
    """Features (rows, D) of a second view, from the frozen model, without graph."""
    with frozen(backbone), torch.no_grad():
        if stream == f"image{SUFFIX}":
            return training_features(backbone, inputs[0])
        return backbone.encode_text(*inputs)


def pair_loss(
    judge: PairCompanion,
    features: Features,
    same: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    cosines: Tensor,
) -> tuple[Tensor, Mapping[str, float]]:
    """The task's loss on a companion's scores, its further terms, and the loss on plain cosines.

    Args:
        judge: the companion.
        features: those of the batch (N, D) as "image" and "text", and of the second views.
        same: bool (N, N), rows that belong together.
        loss_of: the task's loss of similarities (N, N).
        cosines: plain similarities (N, N).

    Raises:
        UserError: the batch has no second views.
    """
    names = ("image", "text")
    if any(f"{name}{SUFFIX}" not in features for name in names):
        raise UserError(
            "the adapter's loss needs second views, and the batch has none",
            where="task",
            fix="attach the adapter before making the task",
        )
    parts = {"pairs": loss_of(judge.score(features["image"], features["text"]))}
    if judge.plain_weight > 0:
        parts["plain"] = judge.plain_weight * loss_of(cosines)
    own = {name: features[name] for name in names}
    views = {name: features[f"{name}{SUFFIX}"] for name in names}
    parts |= judge.terms(own, views, same)
    total = torch.stack(list(parts.values())).sum()
    return total, {name: float(value.detach()) for name, value in parts.items()}
