"""Few-shot classification: K labelled pictures of each class in, accuracy out.

`FewShotTask` trains a class companion (Tip-Adapter-F, XMAdapter) on features that are computed
once. Methods that change the towers train with `tasks.few_shot_towers`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from crossadapt.adapters.attach import active
from crossadapt.adapters.classifier import ClassCompanion, class_companion, class_logits
from crossadapt.data.class_sets import LABEL
from crossadapt.errors import UserError, did_you_mean
from crossadapt.layers.class_cache import SCALE
from crossadapt.layers.feature_cache import ALPHA_STEPS, BETA_STEPS, grid
from crossadapt.tasks import objectives
from crossadapt.tasks.base import Batch, Features, Inputs
from crossadapt.tasks.class_features import VIEWS, View

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

SHOTS = (1, 2, 4, 8, 16)
"""The published numbers of pictures per class."""


@dataclass(frozen=True)
class FewShotConfig:
    """What few-shot classification has beyond the settings of every run."""

    shots: int = 16
    """Pictures per class to learn from; published are 1, 2, 4, 8 and 16."""
    label: str = LABEL
    """Column that names the class of an item."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for the class name; unset: those published for the data set."""
    views: int = 10
    """Random views of each picture, whose mean feature is its key."""
    view: View = "crop"
    """What a view is: a `crop` with mirroring as published, for drawings another `pose`, or
    `none`."""
    val_shots: int | None = None
    """Validation pictures per class (CoOp takes at most 4); unset: all."""
    search: bool = True
    """Search alpha and beta on the validation pictures."""
    search_beta: float | None = None
    """Upper end of the search of beta; unset: the data set's, or 7."""
    search_alpha: float | None = None
    """Upper end of the search of alpha; unset: the data set's, or 3."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        object.__setattr__(self, "templates", tuple(self.templates))
        for name in ("shots", "views", "val_shots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}", where="task_options", fix="give 1 or more")
        if self.view not in VIEWS:
            raise UserError(
                f"view is {self.view!r}", where="task_options", fix=did_you_mean(self.view, VIEWS)
            )
        for name in ("search_beta", "search_alpha"):
            value = getattr(self, name)
            if value is not None and not value > 0.1:
                raise UserError(
                    f"{name} is {value}", where="task_options", fix="give more than 0.1"
                )


@dataclass(frozen=True)
class LabelledFeatures:
    """Features (M, C) of pictures, and their classes int64 (M,)."""

    images: Tensor
    labels: Tensor

    def accuracy(self, logits: Tensor) -> float:
        """Share of the pictures whose largest logit is that of their class, in percent."""
        return 100.0 * float((logits.argmax(dim=1) == self.labels).double().mean())


class FewShotTask:
    """Train a class companion on features of views of the examples.

    Args:
        views: features (V, R, C) of V views of R examples, not normalised; each example is seen
            in one random view per epoch.
        labels: int64 (R,), their classes.
        text: features (N, C) of the class names, for the score of the frozen model.
        validation: features to pick the best epoch with; None for none.
        batch_size: examples of a step.
        seed: of the order of examples.
    """

    name = "few_shot"
    headline = "accuracy"
    calls_classes = True

    def __init__(
        self,
        views: Tensor,
        labels: Tensor,
        text: Tensor,
        *,
        validation: LabelledFeatures | None = None,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        self.views, self.labels, self.text = views, labels, text
        self.validation, self.batch_size, self.seed = validation, batch_size, seed

    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return math.ceil(len(self.labels) / self.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """Rows of each batch, a permutation of all examples, from batch `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.labels))
        for at in range(start * self.batch_size, len(order), self.batch_size):
            yield order[at : at + self.batch_size]

    def collate(self, rows: np.ndarray) -> Batch:
        """A random view of each example: features (B, C), and their classes."""
        index = torch.from_numpy(rows)
        view = torch.randint(len(self.views), (len(rows),))
        return Batch(
            {"image": (self.views[view, index],)}, {"label": self.labels[index]}, len(rows)
        )

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """The features themselves."""
        return inputs[0]

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The companion's loss over the rows of all processes."""
        judge = class_companion(backbone)
        if judge is None:
            raise RuntimeError("the adapter lost its companion")
        labels = objectives.gather(batch.targets["label"])
        return judge.loss(objectives.gather(features["image"]), labels)

    def validate(self, backbone: Backbone) -> dict[str, float]:
        """Accuracy on the validation pictures in percent; without adapter that of the texts."""
        if self.validation is None:
            return {}
        judge, held_out = class_companion(backbone), self.validation
        if judge is None:
            logits = SCALE * F.normalize(held_out.images, dim=-1) @ self.text.T
        else:
            adapter = active(backbone)
            strength = 1.0 if adapter is None else adapter.strength
            logits = class_logits(judge, held_out.images.to(self._device(backbone)), strength)
        return {"accuracy": held_out.accuracy(logits)}

    def parameters(self) -> Mapping[str, Parameter]:
        """None of its own."""
        return {}

    @staticmethod
    def _device(backbone: Backbone) -> Any:
        return next(backbone.model.parameters()).device


def search_sharpness(
    judge: ClassCompanion,
    held_out: LabelledFeatures,
    largest: tuple[float, float],
    strength: float = 1.0,
) -> tuple[float, float, float]:
    """The published grid search: 200 values of beta, 20 of alpha, the first best pair.

    Args:
        judge: built, and trained if it is to be.
        held_out: pictures to choose by.
        largest: upper ends of beta and alpha, neither of which is tried.
        strength: dial of the adapter, see `class_logits`.

    Returns:
        alpha, beta, and the accuracy in percent they reach; nothing is stored.
    """
    alphas = grid(largest[1], ALPHA_STEPS)
    best = (0.0, 0.0, -1.0)
    with torch.no_grad():
        plain = judge.zero_shot(held_out.images)
        for beta in grid(largest[0], BETA_STEPS).tolist():
            part = judge.cache_part(held_out.images, beta)
            logits = plain + strength * alphas.to(part.dtype).view(-1, 1, 1) * part
            right = (logits.argmax(dim=2) == held_out.labels).double().mean(dim=1)
            at = int(right.argmax())
            if 100.0 * float(right[at]) > best[2]:
                best = (float(alphas[at]), beta, 100.0 * float(right[at]))
    return best
