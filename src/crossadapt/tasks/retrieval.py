"""Text-image retrieval: pairs in, symmetric contrastive loss, recall on held-out groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from crossadapt.adapters.companion import companion
from crossadapt.adapters.reach import frozen_layers
from crossadapt.backbones.base import TokenBatch
from crossadapt.backbones.precision import Precision
from crossadapt.data.manifest import Manifest
from crossadapt.data.sampling import PairSampler
from crossadapt.errors import UserError, did_you_mean
from crossadapt.layers.drawing_augmentation import POSE_ONLY, DrawingAugmentation
from crossadapt.tasks import objectives
from crossadapt.tasks.base import Batch, Features, Inputs, TaskSetup, read_options
from crossadapt.tasks.clips import pictures_only
from crossadapt.tasks.encode import (
    Pixels,
    cut,
    stack_pixels,
    training_features,
)
from crossadapt.tasks.held_out import MOST_PAIRS, HeldOut, scores
from crossadapt.tasks.prefix_cache import (
    PrefixCache,
    PrefixNote,
    open_prefix,
    picture_rows,
    text_rows,
)
from crossadapt.tasks.second_view import (
    PICTURE_VIEWS,
    SUFFIX,
    SecondViews,
    ViewKind,
    frozen_features,
    pair_loss,
)

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.base import Backbone

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
    view: ViewKind = "crop"
    """Second view of a picture, for methods whose loss has one (APoLLo): another `crop`, or for
    drawings another `pose` or style (`restyle`)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        if self.augment not in _AUGMENTATIONS:
            raise UserError(
                f"augment is {self.augment!r}",
                where="task_options",
                fix=did_you_mean(self.augment, _AUGMENTATIONS),
            )
        if self.view not in PICTURE_VIEWS:
            raise UserError(
                f"view is {self.view!r}",
                where="task_options",
                fix=did_you_mean(self.view, PICTURE_VIEWS),
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
    calls_companion = True

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
        self._prefix: dict[str, PrefixCache] = {}
        self._groups = torch.from_numpy(train.groups)
        self._texts = objectives.text_keys(train.texts)
        judged = companion(backbone) is not None
        self.views = SecondViews(backbone, train, self.config.view) if judged else None
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
        """Pixels (B, 3, H, W) uint8, ids and mask (B, L), L the longest text of the rows.

        With a prefix cache hidden states stand in the place of the pixels, and behind the mask.
        """
        index = torch.from_numpy(rows)
        items = self.train.item_index[rows]
        views: dict[str, Inputs] = {}
        if "image" in self._prefix:
            pictures = self._prefix["image"].hidden(items)
        else:
            pictures = stack_pixels(self.pixels, items)
            views = {} if self.views is None else self.views(rows, pictures)
            if self._augment is not None:
                pictures = self._augment(pictures)
        tokens = cut(TokenBatch(self._ids[index], self._mask[index]))
        texts: Inputs = (tokens.ids, tokens.mask)
        if "text" in self._prefix:
            texts = (*texts, self._prefix["text"].hidden(rows, tokens.ids.shape[1]))
        return Batch(
            {"image": (pictures,), "text": texts, **views},
            {"group": self._groups[index], "text": self._texts[index]},
            len(rows),
        )

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """Features (rows, D) of pictures or texts; of second views the frozen model's."""
        if stream.endswith(SUFFIX):
            return frozen_features(backbone, stream, inputs)
        if stream in self._prefix:
            ids = inputs[0] if stream == "text" else None
            return self._prefix[stream].encode(backbone, inputs[-1], ids)
        if stream == "image":
            return training_features(backbone, inputs[0], self.config.token_drop)
        return backbone.encode_text(*inputs)

    def cache_prefix(
        self, backbone: Backbone, adapter: AttachedAdapter, precision: Precision, epochs: int
    ) -> list[PrefixNote]:
        """See `PrefixTask`: pictures that are varied in training are never cached, texts are."""
        self._prefix, notes = {}, []
        untouched = frozen_layers(backbone, adapter) if epochs and self.views is None else {}
        encoded = epochs * self.sampler.rows
        rows = []
        if self._augment is None and self.config.token_drop == 0:
            rows.append(picture_rows(backbone, self.pixels))
        rows.append(text_rows(backbone, TokenBatch(self._ids, self._mask)))
        for stream in rows:
            layers = untouched.get(stream.tower, 0)
            if layers:
                cache, note = open_prefix(
                    backbone, stream, layers, precision, encoded / stream.count
                )
                notes.append(note)
                if cache is not None:
                    self._prefix[stream.stream] = cache
        return notes

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The contrastive loss over the rows of all processes, and a companion's part of it."""
        features = {name: objectives.gather(x) for name, x in features.items()}
        positives = objectives.same(
            *(objectives.gather(batch.targets[name]) for name in ("group", "text"))
        )
        scale = backbone.logit_scale.exp()

        def loss_of(similarity: Tensor) -> Tensor:
            if self.objective == "sigmoid":
                bias = _given(backbone.logit_bias)
                return objectives.sigmoid_loss_of(similarity, scale, bias, positives)
            return objectives.info_nce_of(similarity, scale, positives)

        cosines = objectives.cosine(features["image"], features["text"])
        judge = companion(backbone)
        if judge is None:
            return loss_of(cosines), {}
        return pair_loss(judge, features, positives, loss_of, cosines)

    def validate(self, backbone: Backbone) -> dict[str, float]:
        """Recalls and `rsum` in percent on the validation rows; empty without them.

        They are those of the features, which an index can hold. With a companion `pair_rsum` is
        that of its scores, all validation texts being the list.
        """
        if self.validation is None:
            return {}
        images, texts = self.validation.encode(backbone)
        found = scores(self.validation.score(images, texts))
        if companion(backbone) is not None and len(images) * len(texts) <= MOST_PAIRS:
            found["pair_rsum"] = self.validation.score_pairs(backbone, images, texts).rsum
        return found

    def parameters(self) -> Mapping[str, Parameter]:
        """None of its own."""
        return {}


def make_task(setup: TaskSetup, options: Mapping[str, Any]) -> RetrievalTask:
    """The retrieval task of a run."""
    held_out = setup.validation_pixels
    if held_out is not None:
        held_out = pictures_only(held_out, "retrieval")
    config = read_options(RetrievalConfig, options, "retrieval")
    return RetrievalTask(
        setup.backbone,
        setup.train,
        pictures_only(setup.pixels, "retrieval"),
        validation=setup.validation,
        validation_pixels=held_out,
        batch_size=setup.batch_size,
        captions=setup.captions,
        objective=setup.objective,
        seed=setup.seed,
        precision=setup.precision,
        config=config,
    )


def _given(bias: Tensor | None) -> Tensor:
    if bias is None:
        raise RuntimeError("the backbone lost its logit bias")
    return bias
