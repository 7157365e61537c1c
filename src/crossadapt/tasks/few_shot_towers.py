"""Few-shot classification with methods that change the towers (CoOp, adapters, LoRA, ...).

The classes are texts (the first template), the logits cosines at the model's logit scale, the loss
cross-entropy over all classes, as CoOp trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crossadapt.backbones.base import TokenBatch
from crossadapt.backbones.precision import Precision
from crossadapt.data.class_sets import spoken
from crossadapt.tasks import objectives
from crossadapt.tasks.base import Batch, Features, Inputs
from crossadapt.tasks.class_features import VIEWS, View, class_texts
from crossadapt.tasks.encode import Pixels, cut, encode_images, stack_pixels
from crossadapt.tasks.few_shot import FewShotTask, LabelledFeatures

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


class TowerFewShotTask(FewShotTask):
    """Train the towers on a few labelled pictures.

    Args:
        backbone: its tokenizer is used once, here.
        pixels: prepared pictures of the R examples.
        labels: int64 (R,), their classes.
        names: of the N classes.
        templates: sentences; training uses the first, validation all.
        view: a random view of each example in every epoch.
        validation: prepared pictures and their classes.
        batch_size: examples of a step.
        seed: of the order.
        precision: of validation.
    """

    calls_classes = False

    def __init__(
        self,
        backbone: Backbone,
        pixels: Pixels,
        labels: Tensor,
        names: Sequence[str],
        templates: Sequence[str],
        *,
        view: View = "crop",
        validation: tuple[Pixels, Tensor] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(torch.empty(0), labels, torch.empty(0), batch_size=batch_size, seed=seed)
        self.pixels, self.held_out, self.precision = pixels, validation, precision
        self.names, self.templates, self.change = tuple(names), tuple(templates), VIEWS[view]
        tokens = backbone.tokenize([templates[0].replace("{}", spoken(name)) for name in names])
        self.tokens = cut(TokenBatch(tokens.ids, tokens.mask))

    def collate(self, rows: np.ndarray) -> Batch:
        """A view of each example (B, 3, H, W), and the tokens of all classes (N, L)."""
        pixels = stack_pixels(self.pixels, rows)
        if self.change is not None:
            pixels = self.change(pixels)
        return Batch(
            {"image": (pixels,), "text": (self.tokens.ids, self.tokens.mask)},
            {"label": self.labels[torch.from_numpy(rows)]},
            len(rows),
        )

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """Features (rows, C) of pictures, or (N, C) of classes."""
        if stream == "image":
            return backbone.encode_image(backbone.preprocess.normalise(inputs[0]))
        return backbone.encode_text(*inputs)

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Cross-entropy over the classes, of the rows of all processes."""
        images = objectives.gather(features["image"])
        labels = objectives.gather(batch.targets["label"])
        logits = backbone.logit_scale.exp() * objectives.cosine(images, features["text"])
        return torch.nn.functional.cross_entropy(logits, labels), {}

    def validate(self, backbone: Backbone) -> dict[str, float]:
        """Accuracy on the validation pictures in percent, with whatever adapter is active."""
        if self.held_out is None:
            return {}
        pixels, labels = self.held_out
        images = encode_images(backbone, pixels, precision=self.precision)
        texts = class_texts(backbone, self.names, self.templates, self.precision)
        return {"accuracy": LabelledFeatures(images, labels).accuracy(images @ texts.T)}
