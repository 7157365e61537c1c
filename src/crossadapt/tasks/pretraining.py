"""Training a small dual encoder from scratch: contrast over concepts plus a teacher's features.

A few tens of thousands of pictures are too few for contrastive learning alone, which then learns
the training pictures by heart. Two further losses pull the picture features towards those of a
frozen vision model, computed once for every picture: the *feature* loss (cosine distance after a
linear head; FitNets, arXiv 1412.6550) and the *relation* loss (each picture's similarities to the
rest of the batch, as a distribution; relational distillation, arXiv 1904.05068 in spirit, with the
divergence of SEED, arXiv 2101.04731). Pictures are redrawn at random (`DrawingAugmentation`) and
part of their patch tokens dropped, which also halves the cost of a step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError
from crossadapt.layers.drawing_augmentation import DrawingAugmentation
from crossadapt.tasks import objectives
from crossadapt.tasks.base import Batch, Features, Inputs, TaskSetup, read_options
from crossadapt.tasks.clips import pictures_only
from crossadapt.tasks.encode import Pixels, stack_pixels, training_features
from crossadapt.tasks.retrieval import HeldOut, scores

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class PretrainingConfig:
    """What from-scratch training adds to the contrastive loss."""

    teacher: str = ""
    """Folder with ``teacher.safetensors`` (`features`, N x K) and ``teacher.json`` (N items)."""
    feature_weight: float = 4.0
    """Weight of the cosine distance between the head's output and the teacher's features."""
    relation_weight: float = 1.0
    """Weight of the divergence between the two models' similarities within a batch."""
    relation_temperature: float = 0.1
    """Temperature of both similarity distributions."""
    token_drop: float = 0.5
    """Share of patch tokens dropped while training."""
    augment: bool = True
    """Redraw pictures at random; meant for drawings on white."""
    first_caption: float = 0.5
    """Probability of a picture's first caption, its name; otherwise any of them."""
    weight_column: str = ""
    """Manifest attribute with how often an epoch visits a picture; once each when empty."""


class Teacher:
    """Features of a frozen vision model for part of a manifest's items, centred, length one."""

    def __init__(self, folder: str, items: list[str]) -> None:
        try:
            names = json.loads((Path(folder) / "teacher.json").read_text())
            features = load_file(Path(folder) / "teacher.safetensors")["features"].float()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"the teacher's features cannot be read: {error}",
                where=folder,
                fix="write teacher.safetensors (tensor 'features') and teacher.json (item names)",
            ) from error
        if len(names) != len(features):
            raise UserError(
                f"{len(names)} names for {len(features)} features",
                where=folder,
                fix="write both files again from one run",
            )
        self.features = F.normalize(features - features.mean(dim=0), dim=-1)
        known = {name: index for index, name in enumerate(names)}
        self.index = torch.tensor([known.get(item, -1) for item in items])
        if not (self.index >= 0).any():
            raise UserError(
                "the teacher knows none of the training pictures",
                where=folder,
                fix="compute its features for the items of this manifest (same paths)",
            )


class PretrainingTask:
    """Multi-positive contrast, feature and relation distillation on augmented pictures.

    Args:
        backbone: with every weight trained (method `full`, scope `all`).
        train: rows to learn from; rows of one group, or with the same text, are positives.
        pixels: prepared pictures of ``train.items``, in that order.
        config: the weights of the losses and the augmentation.
        validation: held-out rows, measured like retrieval.
        validation_pixels: prepared pictures of ``validation.items``.
        batch_size: pictures of a global batch.
        seed: of sampling and of the head.
    """

    name = "pretraining"
    headline = "rsum"

    def __init__(
        self,
        backbone: Backbone,
        train: Manifest,
        pixels: Pixels,
        config: PretrainingConfig,
        *,
        validation: Manifest | None = None,
        validation_pixels: Pixels | None = None,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        self.config, self.train, self.pixels = config, train, pixels
        self.batch_size, self.seed = batch_size, seed
        self._augment = DrawingAugmentation() if config.augment else None
        self._texts = np.asarray(train.texts, dtype=object)
        _, self._text_ids = np.unique(train.texts, return_inverse=True)
        order = np.argsort(train.item_index, kind="stable")
        counts = np.bincount(train.item_index, minlength=len(train.items))
        self._rows_of = np.split(order, np.cumsum(counts)[:-1])
        self._visits = np.cumsum(self._weights())
        if self.steps_per_epoch() < 1:
            raise UserError(
                f"an epoch visits {round(self._visits[-1])} pictures, a batch needs {batch_size}",
                where="batch_size",
                fix="lower it, or raise the weights",
            )
        self.teacher = Teacher(config.teacher, train.items) if config.teacher else None
        self.head = None
        if self.teacher is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.head = nn.Linear(backbone.embedding_dim, self.teacher.features.shape[1])
        self.validation = None
        if validation is not None and validation_pixels is not None:
            self.validation = HeldOut(backbone, validation, validation_pixels)
        self._tokenize = backbone.tokenize

    def _weights(self) -> np.ndarray:
        column = self.config.weight_column
        if not column:
            return np.ones(len(self.train.items))
        if column not in self.train.attributes:
            raise UserError(
                f"no column {column!r}",
                where=self.train.source,
                fix="name one of: " + ", ".join(self.train.attributes),
            )
        weights = np.zeros(len(self.train.items))
        weights[self.train.item_index] = self.train.table.column(column).to_numpy()
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
            raise UserError("weights must be finite and not negative", where=f"column {column}")
        return weights

    def steps_per_epoch(self) -> int:
        """Full batches in the sum of the weights."""
        return round(self._visits[-1]) // self.batch_size

    def batches(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """One caption row for each visited picture; systematic sampling keeps the visits exact."""
        random = np.random.default_rng([self.seed, epoch])
        count = round(self._visits[-1])
        points = (np.arange(count) + random.random()) * (self._visits[-1] / count)
        items = np.searchsorted(self._visits, points, side="right").clip(max=len(self._rows_of) - 1)
        items = random.permutation(items)
        first = random.random(count) < self.config.first_caption
        draws = random.random(count)
        for step in range(start, self.steps_per_epoch()):
            where = range(step * self.batch_size, (step + 1) * self.batch_size)
            rows = [self._caption(items[i], first[i], draws[i]) for i in where]
            yield np.asarray(rows, np.int64)

    def _caption(self, item: int, first: bool, draw: float) -> int:
        rows = self._rows_of[item]
        return rows[0] if first else rows[int(draw * len(rows))]

    def collate(self, rows: np.ndarray) -> Batch:
        """Augmented pixels (B, 3, H, W) uint8, ids and mask (B, L), and what tells positives."""
        items = self.train.item_index[rows]
        pixels = stack_pixels(self.pixels, items)
        if self._augment is not None:
            pixels = self._augment(pixels)
        tokens = self._tokenize(self._texts[rows].tolist())
        targets = {
            "group": torch.from_numpy(self.train.groups[rows]),
            "text": torch.from_numpy(self._text_ids[rows]),
        }
        if self.teacher is not None:
            targets["teacher"] = self.teacher.index[torch.from_numpy(items)]
        return Batch({"image": (pixels,), "text": (tokens.ids, tokens.mask)}, targets, len(rows))

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """Features (rows, D); pictures lose a random part of their patch tokens on the way."""
        if stream == "text":
            return backbone.encode_text(*inputs)
        return training_features(backbone, inputs[0], self.config.token_drop)

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Weighted sum of the losses, and each of them."""
        images, texts = (objectives.gather(features[name]) for name in ("image", "text"))
        targets = {name: objectives.gather(value) for name, value in batch.targets.items()}
        positives = objectives.same(targets["group"], targets["text"])
        contrast = objectives.info_nce(images, texts, backbone.logit_scale.exp(), positives)
        if self.teacher is None or self.head is None:
            return contrast, {}
        known = (targets["teacher"] >= 0).nonzero().squeeze(1)
        if len(known) < 2:
            return contrast, {"contrast": contrast.item()}
        mine = images[known].float()
        teacher = self.teacher.features.to(mine.device)[targets["teacher"][known]]
        feature = 1 - F.cosine_similarity(self.head(mine), teacher).mean()
        relation = relation_divergence(mine, teacher, self.config.relation_temperature)
        total = (
            contrast + self.config.feature_weight * feature + self.config.relation_weight * relation
        )
        parts = {"contrast": contrast, "feature": feature, "relation": relation}
        return total, {name: value.item() for name, value in parts.items()}

    def validate(self, backbone: Backbone) -> dict[str, float]:
        """Recalls on the validation rows, with whole pictures; empty without them."""
        return {} if self.validation is None else scores(self.validation.evaluate(backbone))

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The head towards the teacher's features."""
        return {} if self.head is None else dict(self.head.named_parameters(prefix="head"))


def make_task(setup: TaskSetup, options: Mapping[str, Any]) -> PretrainingTask:
    """The pre-training task of a run."""
    held_out = setup.validation_pixels
    if held_out is not None:
        held_out = pictures_only(held_out, "pretraining")
    return PretrainingTask(
        setup.backbone,
        setup.train,
        pictures_only(setup.pixels, "pretraining"),
        read_options(PretrainingConfig, options, "pretraining"),
        validation=setup.validation,
        validation_pixels=held_out,
        batch_size=setup.batch_size,
        seed=setup.seed,
    )


def relation_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean KL(teacher || student) between softmaxed similarities to the other rows of a batch.

    Args:
        student: features (N, D), any length.
        teacher: features (N, K), any length.
        temperature: divides the cosines of both.
    """
    itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
    logs = [
        (objectives.cosine(x, x) / temperature).masked_fill(itself, -1e4).log_softmax(dim=1)
        for x in (student, teacher)
    ]
    return F.kl_div(logs[0], logs[1], log_target=True, reduction="batchmean")
