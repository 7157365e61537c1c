"""What a class companion offers to tasks: scores of pictures for named classes.

A method built from a few labelled examples knows classes. Its companion (see `plan.Companion`) has

* ``classes``: their names, in the order of every tensor below;
* ``build(support)``: take in the examples; done once, before training;
* ``zero_shot(images (B, C)) -> (B, N)``: the frozen model's logits;
* ``logits(images (B, C)) -> (B, N)``: with the examples;
* ``loss(images, labels (B,)) -> (scalar, {name: value})``: what training lowers;
* ``cache_part(images (B, C), beta) -> (B, N)``: what ``alpha`` multiplies, for the search of
  ``alpha`` and ``beta``, and ``set_sharpness(alpha, beta)``, which stores what it found.

Features have any length; they are normalised inside. Encoding does not call a companion: the
features are the frozen model's, so an index of pictures stays valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from crossadapt.adapters.attach import active

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

BLOCK = 1024
"""Pictures scored at a time."""


@dataclass(frozen=True)
class Support:
    """The labelled examples of N classes, K each, and the texts of the classes.

    `keys` (N K, C) are the features of the examples, class by class, and `text` (N, C) those of
    the class names; both of length one. `text_keys` (N, C) are the text features a text cache is
    made from, where they are others (CoOp's).
    """

    keys: Tensor
    text: Tensor
    text_keys: Tensor | None = None


class ClassCompanion(Protocol):
    """See the module's text."""

    classes: tuple[str, ...]

    @property
    def alpha(self) -> float:
        """Weight of the cache."""
        ...

    @property
    def beta(self) -> float:
        """Sharpness of the cache."""
        ...

    def build(self, support: Support) -> None:
        """Take in the examples."""
        ...

    def zero_shot(self, images: Tensor) -> Tensor:
        """Logits (B, N) of the frozen model."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, N) with the examples."""
        ...

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a batch and parts of it to log."""
        ...

    def cache_part(self, images: Tensor, beta: float | None = None) -> Tensor:
        """What alpha multiplies (B, N), at the stored beta or another."""
        ...

    def set_sharpness(self, alpha: float, beta: float) -> None:
        """Store alpha and beta."""
        ...


def class_companion(backbone: Backbone) -> ClassCompanion | None:
    """The active adapter's companion if it scores classes, else None."""
    adapter = active(backbone)
    found = None if adapter is None else adapter.companion
    return cast("ClassCompanion", found) if hasattr(found, "classes") else None


def class_logits(judge: ClassCompanion, images: Tensor, strength: float = 1.0) -> Tensor:
    """Logits (B, N) of features (B, C), in blocks and without graph; on the CPU.

    Args:
        judge: a class companion that was built.
        images: features of any length.
        strength: 1 with the examples, 0 the frozen model, between: ``z + s (logits - z)``.
    """
    parts = []
    with torch.no_grad():
        for block in images.split(BLOCK):
            plain = judge.zero_shot(block) if strength < 1.0 else None
            found = judge.logits(block) if strength > 0.0 else plain
            if plain is not None and found is not None and strength > 0.0:
                found = plain + strength * (found - plain)
            parts.append(cast("Tensor", found).cpu())
    return torch.cat(parts)
