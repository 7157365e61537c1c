"""Modules that hold a cache of labelled features and score classes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossadapt.errors import UserError
from crossadapt.layers.feature_cache import affinity, class_sums

SCALE = 100.0
"""Factor of the zero-shot cosines; a constant in the released code, not the model's logit scale."""

if TYPE_CHECKING:
    Parts = Mapping[str, float]


class ClassCache(nn.Module):
    """Zero-shot logits plus those of a cache: ``100 f W + alpha exp(-beta (1 - f K')) L``.

    Keys K (N shots, C) stand class by class, so their labels L follow from their number.

    Args:
        classes: names of the N classes.
        shots: keys per class.
        width: C, of the features.
        alpha: weight of the cache, until `set_sharpness`.
        beta: sharpness of the cache, until then.
        trained_keys: whether the keys are trained; they are not normalised again if so.
    """

    labels: Tensor
    text: Tensor
    sharpness: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        shots: int,
        width: int,
        alpha: float,
        beta: float,
        trained_keys: bool,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.keys = nn.Parameter(
            torch.zeros(len(classes) * shots, width), requires_grad=trained_keys
        )
        self.register_buffer("text", torch.zeros(len(classes), width))
        self.register_buffer("sharpness", torch.tensor([alpha, beta]))
        labels = torch.arange(len(classes)).repeat_interleave(shots)
        self.register_buffer("labels", labels, persistent=False)

    @property
    def alpha(self) -> float:
        """Weight of the cache."""
        return float(self.sharpness[0])

    @property
    def beta(self) -> float:
        """Sharpness of the cache."""
        return float(self.sharpness[1])

    def set_sharpness(self, alpha: float, beta: float) -> None:
        """Store alpha and beta."""
        self.sharpness.copy_(torch.tensor([alpha, beta]))

    def build(self, support: Any) -> None:
        """Take in the examples, an `adapters.classifier.Support`.

        Raises:
            UserError: features of another number or width than the cache was made for.
        """
        for name, wanted in (("keys", self.keys), ("text", self.text)):
            given: Tensor = getattr(support, name)
            if given.shape != wanted.shape:
                raise UserError(
                    f"the {name} have shape {tuple(given.shape)}, {tuple(wanted.shape)} is needed",
                    where="support",
                    fix="give shots rows for each class, from the same backbone",
                )
            with torch.no_grad():
                wanted.copy_(given)

    def zero_shot(self, images: Tensor) -> Tensor:
        """Logits (B, N) of features (B, C): 100 times the cosine with each class's text."""
        return SCALE * F.normalize(images.float(), dim=-1) @ self.text.T

    def cache_part(self, images: Tensor, beta: float | None = None) -> Tensor:
        """What the cache says (B, N), before alpha."""
        cosines = F.normalize(images.float(), dim=-1) @ self.keys.T
        found = affinity(cosines, self.beta if beta is None else beta)
        return class_sums(found, self.labels, len(self.classes))

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, N) of features (B, C)."""
        return self.zero_shot(images) + self.alpha * self.cache_part(images)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Parts]:
        """Cross-entropy of the logits."""
        return F.cross_entropy(self.logits(images), labels), {}
