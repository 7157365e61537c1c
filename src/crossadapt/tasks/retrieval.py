"""Text-image retrieval: pairs in, symmetric contrastive loss, recall on held-out groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from crossadapt.backbones.base import TokenBatch
from crossadapt.backbones.precision import Precision
from crossadapt.data.manifest import Manifest
from crossadapt.data.sampling import PairSampler
from crossadapt.errors import UserError, did_you_mean
from crossadapt.evaluation.protocols import evaluate
from crossadapt.layers.drawing_augmentation import POSE_ONLY, DrawingAugmentation
from crossadapt.tasks import objectives
from crossadapt.tasks.base import Batch, Features, Inputs, TaskSetup, read_options
from crossadapt.tasks.encode import (
    Pixels,
    cut,
    encode_images,
    encode_texts,
    stack_pixels,
    training_features,
)

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone
    from crossadapt.evaluation.metrics import RetrievalResult

Objective = Literal["info-nce", "sigmoid"]


_AUGMENTATIONS = {"none": None, "pose": POSE_ONLY, "restyle": DrawingAugmentation()}


@dataclass(frozen=True)
class RetrievalConfig:
    """What retrieval has beyond the settings of every run."""

    augment: Literal["none", "pose", "restyle"] = "none"
    """Vary training pictures that are drawings on white: `pose` moves, turns and scales them,
    `restyle` also changes colours and strokes."""
    token_drop: float = 0.0
    """Share of patch tokens dropped at random while training: cheaper, and against over-fitting."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        if self.augment not in _AUGMENTATIONS:
            raise UserError(
                f"augment is {self.augment!r}",
                where="task_options",
                fix=did_you_mean(self.augment, _AUGMENTATIONS),
            )
        if not 0 <= self.token_drop < 1:
            raise UserError(
                f"token_drop is {self.token_drop}", where="task_options", fix="give [0, 1)"
            )


class RetrievalTask:
    """Learn that a picture and its texts belong together.

    Two rows match when they are of one group or have the same text, whatever case it is written
    in; matching rows are positives of each other, never negatives. Validation is the protocol
    `pairs` on the validation rows, and `rsum` (the sum of the six recalls, at most 600) picks the
    best checkpoint: on a few hundred queries it is less noisy than a single recall at 1.

    Args:
        backbone: its tokenizer is used once, here.
        train: rows to learn from.
        pixels: prepared pictures of ``train.items``, in that order.
        validation: held-out rows; None for none.
        validation_pixels: prepared pictures of ``validation.items``.
        batch_size: pairs of a global batch.
        captions: ``one`` random text per picture and epoch, or ``all`` of them.
        objective: ``info-nce`` or ``sigmoid`` (a backbone with a logit bias only).
        seed: of the order of rows.
        precision: of validation.
        config: augmentation; none when left out.

    Raises:
        UserError: fewer than two groups, a batch size below two, no logit bias for ``sigmoid``.
    """

    name = "retrieval"
    headline = "rsum"

    def __init__(
        self,
        backbone: Backbone,
        train: Manifest,
        pixels: Pixels,
        *,
        validation: Manifest | None = None,
        validation_pixels: Pixels | None = None,
        batch_size: int = 128,
        captions: Literal["one", "all"] = "one",
        objective: Objective = "info-nce",
        seed: int = 0,
        precision: Precision | None = None,
        config: RetrievalConfig | None = None,
    ) -> None:
        if len(train.group_names) < 2:
            raise UserError(
                f"the training split has {len(train.group_names)} group: nothing to tell apart",
                where=train.source or "train split",
                fix="add data, or change the split so that at least two items are trained on",
            )
        if objective == "sigmoid" and backbone.logit_bias is None:
            raise UserError(
                f"{backbone.source} has no logit bias, which the sigmoid loss needs",
                where="objective",
                fix="use info-nce, or a SigLIP backbone",
            )
        self.train, self.pixels, self.objective = train, pixels, objective
        self.config = config or RetrievalConfig()
        self._augment = _AUGMENTATIONS[self.config.augment]
        self.sampler = PairSampler(train, batch_size, seed=seed, captions=captions)
        tokens = backbone.tokenize(train.texts)
        # Half the memory of int64: every vocabulary fits.
        self._ids, self._mask = tokens.ids.int(), tokens.mask
        self._groups = torch.from_numpy(train.groups)
        folded = [" ".join(text.casefold().split()) for text in train.texts]
        self._texts = torch.from_numpy(np.unique(folded, return_inverse=True)[1])
        self.validation = None
        if validation is not None and validation_pixels is not None:
            self.validation = HeldOut(backbone, validation, validation_pixels, precision)

    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.sampler)

    def batches(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """Rows of each global batch, from batch `start` on."""
        return self.sampler.batches(epoch, start)

    def collate(self, rows: np.ndarray) -> Batch:
        """Pixels (B, 3, H, W) uint8, ids and mask (B, L), L the longest text of the rows."""
        index = torch.from_numpy(rows)
        pixels = stack_pixels(self.pixels, self.train.item_index[rows])
        if self._augment is not None:
            pixels = self._augment(pixels)
        tokens = cut(TokenBatch(self._ids[index], self._mask[index]))
        return Batch(
            {"image": (pixels,), "text": (tokens.ids, tokens.mask)},
            {"group": self._groups[index], "text": self._texts[index]},
            len(rows),
        )

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """Features (rows, D) of pictures or of texts."""
        if stream == "image":
            return training_features(backbone, inputs[0], self.config.token_drop)
        return backbone.encode_text(*inputs)

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The contrastive loss over the rows of all processes."""
        images, texts = (objectives.gather(features[name]) for name in ("image", "text"))
        positives = objectives.same(
            *(objectives.gather(batch.targets[name]) for name in ("group", "text"))
        )
        scale = backbone.logit_scale.exp()
        if self.objective == "sigmoid":
            bias = backbone.logit_bias
            return objectives.sigmoid_loss(images, texts, scale, _given(bias), positives), {}
        return objectives.info_nce(images, texts, scale, positives), {}

    def validate(self, backbone: Backbone) -> dict[str, float]:
        """Recalls and `rsum` in percent on the validation rows; empty without them."""
        return {} if self.validation is None else scores(self.validation.evaluate(backbone))

    def parameters(self) -> Mapping[str, Parameter]:
        """None of its own."""
        return {}


def make_task(setup: TaskSetup, options: Mapping[str, Any]) -> RetrievalTask:
    """The retrieval task of a run."""
    config = read_options(RetrievalConfig, options, "retrieval")
    return RetrievalTask(
        setup.backbone,
        setup.train,
        setup.pixels,
        validation=setup.validation,
        validation_pixels=setup.validation_pixels,
        batch_size=setup.batch_size,
        captions=setup.captions,
        objective=setup.objective,
        seed=setup.seed,
        precision=setup.precision,
        config=config,
    )


class HeldOut:
    """Rows to measure on, tokenised once: `evaluate` as often as you like."""

    def __init__(
        self,
        backbone: Backbone,
        manifest: Manifest,
        pixels: Pixels,
        precision: Precision | None = None,
    ) -> None:
        self.manifest, self.pixels, self.precision = manifest, pixels, precision
        self._tokens = backbone.tokenize(manifest.texts)

    def encode(self, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """Features of the items (N, D) and of the texts (M, D), in the manifest's order."""
        images = encode_images(backbone, self.pixels, precision=self.precision)
        return images, encode_texts(backbone, self._tokens, precision=self.precision)

    def evaluate(self, backbone: Backbone, protocol: str = "pairs") -> RetrievalResult:
        """Retrieval in both directions with whatever adapter is active."""
        return self.score(*self.encode(backbone), protocol)

    def score(self, images: Tensor, texts: Tensor, protocol: str = "pairs") -> RetrievalResult:
        """Retrieval with features that `encode` gave."""
        names = self.manifest.group_names
        return evaluate(
            images,
            texts,
            [names[g] for g in self.manifest.item_groups],
            [names[g] for g in self.manifest.groups],
            protocol,
        )


def scores(result: RetrievalResult) -> dict[str, float]:
    """The numbers of an evaluation that a training log shows."""
    return {
        "t2i_r1": result.text_to_image.r1,
        "t2i_r10": result.text_to_image.r10,
        "i2t_r1": result.image_to_text.r1,
        "i2t_r10": result.image_to_text.r10,
        "rsum": result.rsum,
    }


def _given(bias: Tensor | None) -> Tensor:
    if bias is None:
        raise RuntimeError("the backbone lost its logit bias")
    return bias
