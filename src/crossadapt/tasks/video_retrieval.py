"""Text-video retrieval: clips and texts in, symmetric contrastive loss through a similarity head.

The head that trains is the head that measures: see `crossadapt.layers.frame_pooling`. A picture is
a clip of one frame, and for those both heads give the loss and the scores of image retrieval.
"""

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
from crossadapt.errors import UserError
from crossadapt.evaluation.order_probe import ProbeResult, order_probe
from crossadapt.evaluation.protocols import Scores, evaluate, evaluate_scores
from crossadapt.layers.frame_pooling import (
    MeanPooling,
    TextConditionedPooling,
    make_pooling,
    mean_pooled,
)
from crossadapt.tasks import objectives
from crossadapt.tasks.base import Batch, Features, Inputs, TaskSetup, read_options
from crossadapt.tasks.clips import (
    ClipFeatures,
    Clips,
    as_clips,
    clip_features,
    encode_clips,
    stack_clips,
)
from crossadapt.tasks.encode import Pixels, cut, encode_texts
from crossadapt.tasks.retrieval import scores

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone
    from crossadapt.evaluation.metrics import RetrievalResult

Pooling = MeanPooling | TextConditionedPooling


@dataclass(frozen=True)
class VideoRetrievalConfig:
    """What video retrieval has beyond the settings of every run."""

    pooling: Literal["mean", "text-conditioned"] = "mean"
    """How the frames of a clip meet a text, in training and in evaluation: `mean` is CLIP4Clip's,
    `text-conditioned` the Cross-Modal Adapter's."""
    temperature: float = 5.0
    """Of the text-conditioned weights of frames."""
    token_drop: float = 0.0
    """Share of patch tokens dropped at random while training: cheaper, and against over-fitting."""
    reversed_negatives: bool = False
    """Every clip of a batch is also shown backwards, and its text has to prefer it as it is (see
    `objectives.preference`). Teaches the order of events to methods that see it; doubles the cost
    of the vision tower."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        make_pooling(self.pooling, self.temperature)
        if not 0 <= self.token_drop < 1:
            raise UserError(
                f"token_drop is {self.token_drop}", where="task_options", fix="give [0, 1)"
            )

    def head(self) -> Pooling:
        """The similarity head."""
        return make_pooling(self.pooling, self.temperature)


class VideoRetrievalTask:
    """Learn that a clip and its texts belong together.

    Rows match as in `RetrievalTask`: the same group, or the same text. Validation is the protocol
    `pairs` on the validation rows with the same head, and `rsum` picks the best checkpoint.

    Args:
        backbone: its tokenizer is used once, here.
        train: rows to learn from.
        clips: prepared clips of ``train.items``, in that order, or pictures.
        validation: held-out rows; None for none.
        validation_clips: prepared clips of ``validation.items``.
        batch_size: pairs of a global batch.
        captions: ``one`` random text per clip and epoch, or ``all`` of them.
        objective: ``info-nce`` or ``sigmoid`` (a backbone with a logit bias only).
        seed: of the order of rows.
        precision: of validation.
        config: head and token drop.

    Raises:
        UserError: fewer than two groups, a batch size below two, no logit bias for ``sigmoid``.
    """

    name = "video_retrieval"
    headline = "rsum"

    def __init__(
        self,
        backbone: Backbone,
        train: Manifest,
        clips: Clips | Pixels,
        *,
        validation: Manifest | None = None,
        validation_clips: Clips | Pixels | None = None,
        batch_size: int = 128,
        captions: Literal["one", "all"] = "one",
        objective: Literal["info-nce", "sigmoid"] = "info-nce",
        seed: int = 0,
        precision: Precision | None = None,
        config: VideoRetrievalConfig | None = None,
    ) -> None:
        if len(train.group_names) < 2:
            raise UserError(
                f"the training split has {len(train.group_names)} group: nothing to tell apart",
                where=train.source or "train split",
                fix="add data, or change the split so that at least two clips are trained on",
            )
        if objective == "sigmoid" and (config or VideoRetrievalConfig()).reversed_negatives:
            raise UserError(
                "reversed_negatives is for the info-nce objective",
                where="task_options",
                fix="use objective info-nce, or leave it out",
            )
        if objective == "sigmoid" and backbone.logit_bias is None:
            raise UserError(
                f"{backbone.source} has no logit bias, which the sigmoid loss needs",
                where="objective",
                fix="use info-nce, or a SigLIP backbone",
            )
        self.train, self.clips, self.objective = train, as_clips(clips), objective
        self.config = config or VideoRetrievalConfig()
        self.head = self.config.head()
        self.sampler = PairSampler(train, batch_size, seed=seed, captions=captions)
        tokens = backbone.tokenize(train.texts)
        self._ids, self._mask = tokens.ids.int(), tokens.mask
        self._groups = torch.from_numpy(train.groups)
        folded = [" ".join(text.casefold().split()) for text in train.texts]
        self._texts = torch.from_numpy(np.unique(folded, return_inverse=True)[1])
        self.validation = None
        if validation is not None and validation_clips is not None:
            self.validation = HeldOutClips(
                backbone, validation, validation_clips, self.head, precision
            )

    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.sampler)

    def batches(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """Rows of each global batch, from batch `start` on."""
        return self.sampler.batches(epoch, start)

    def collate(self, rows: np.ndarray) -> Batch:
        """Frames (B, F, 3, H, W) uint8 and mask (B, F); ids and mask (B, L)."""
        index = torch.from_numpy(rows)
        pixels, mask = stack_clips(self.clips, self.train.item_index[rows])
        tokens = cut(TokenBatch(self._ids[index], self._mask[index]))
        streams: dict[str, Inputs] = {"clip": (pixels, mask), "text": (tokens.ids, tokens.mask)}
        return Batch(
            streams,
            {"group": self._groups[index], "text": self._texts[index], "frames": mask},
            len(rows),
        )

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """Features of texts (rows, D), or of clips (rows, F, D).

        With `reversed_negatives` the clips' features are (rows, 2 F, D): as they are, then
        backwards, both without the same patches, so that nothing but the order differs.
        """
        if stream == "text":
            return backbone.encode_text(*inputs)
        pixels, mask = inputs
        drop = self.config.token_drop
        if not self.config.reversed_negatives:
            return clip_features(backbone, pixels, mask, drop)
        both = torch.cat([pixels, backwards(pixels, mask)])
        clips = torch.arange(len(mask)).repeat(2)
        forth, back = clip_features(backbone, both, mask.repeat(2, 1), drop, clips).chunk(2)
        return torch.cat([forth, back], 1)

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The contrastive loss over the rows of all processes."""
        reversed_too = self.config.reversed_negatives
        clips, texts = (objectives.gather(features[name]) for name in ("clip", "text"))
        targets = {name: objectives.gather(value) for name, value in batch.targets.items()}
        positives = objectives.same(targets["group"], targets["text"])
        forth, back = clips.split(targets["frames"].shape[1], 1) if reversed_too else (clips, None)
        similarity = self.head(texts, forth, targets["frames"]).T
        scale = backbone.logit_scale.exp()
        if self.objective == "info-nce":
            loss = objectives.info_nce_of(similarity, scale, positives)
            if back is None:
                return loss, {}
            wrong = self.head(texts, back, targets["frames"]).diagonal()
            order = objectives.preference(similarity.diagonal(), wrong, scale)
            return loss + order, {"order": float(order.detach())}
        bias = backbone.logit_bias
        if bias is None:
            raise RuntimeError("the backbone lost its logit bias")
        return objectives.sigmoid_loss_of(similarity, scale, bias, positives), {}

    def validate(self, backbone: Backbone) -> dict[str, float]:
        """Recalls and `rsum` in percent on the validation rows; empty without them."""
        return {} if self.validation is None else scores(self.validation.evaluate(backbone))

    def parameters(self) -> Mapping[str, Parameter]:
        """None of its own."""
        return {}


def make_task(setup: TaskSetup, options: Mapping[str, Any]) -> VideoRetrievalTask:
    """The video retrieval task of a run."""
    return VideoRetrievalTask(
        setup.backbone,
        setup.train,
        setup.pixels,
        validation=setup.validation,
        validation_clips=setup.validation_pixels,
        batch_size=setup.batch_size,
        captions=setup.captions,
        objective=setup.objective,
        seed=setup.seed,
        precision=setup.precision,
        config=read_options(VideoRetrievalConfig, options, "video-retrieval"),
    )


def backwards(pixels: Tensor, mask: Tensor) -> Tensor:
    """Clips (B, F, 3, H, W) with their unmasked frames in the opposite order."""
    places = torch.arange(mask.shape[1]).expand_as(mask)
    # Unmasked frames trade places from the outside in; masked ones stay.
    rank = mask.long().cumsum(1) - 1
    mirrored = (mask.sum(1, keepdim=True) - 1 - rank).clamp_min(0)
    order = mask.long().argsort(dim=1, descending=True, stable=True).gather(1, mirrored)
    order = torch.where(mask, order, places)
    return pixels[torch.arange(len(pixels))[:, None], order]


class HeldOutClips:
    """Rows to measure on, tokenised once: `evaluate` as often as you like."""

    def __init__(
        self,
        backbone: Backbone,
        manifest: Manifest,
        clips: Clips | Pixels,
        head: Pooling,
        precision: Precision | None = None,
    ) -> None:
        self.manifest, self.clips, self.precision = manifest, as_clips(clips), precision
        self.head = head
        self._tokens = backbone.tokenize(manifest.texts)

    def encode(self, backbone: Backbone) -> tuple[ClipFeatures, Tensor]:
        """Features of the clips (N, F, D) and of the texts (M, D), in the manifest's order."""
        clips = encode_clips(backbone, self.clips, precision=self.precision)
        texts = encode_texts(backbone, self._tokens, precision=self.precision, unit=False)
        return clips, texts

    def evaluate(self, backbone: Backbone, protocol: str = "pairs") -> RetrievalResult:
        """Retrieval in both directions with whatever adapter is active."""
        return self.score(*self.encode(backbone), protocol)

    def score(self, clips: ClipFeatures, texts: Tensor, protocol: str = "pairs") -> RetrievalResult:
        """Retrieval with features that `encode` gave."""
        names = self.manifest.group_names
        clip_groups = [names[g] for g in self.manifest.item_groups]
        text_groups = [names[g] for g in self.manifest.groups]
        if isinstance(self.head, MeanPooling):
            # One vector per clip: the plain ranks, with their exact treatment of ties.
            pooled = mean_pooled(clips.frames, clips.mask)
            return evaluate(pooled, texts, clip_groups, text_groups, protocol)
        said = f"text-conditioned cosine, temperature {self.head.temperature:g}"
        return evaluate_scores(
            self.scorer(clips, texts), clip_groups, text_groups, protocol, similarity=said
        )

    def scorer(self, clips: ClipFeatures, texts: Tensor) -> Scores:
        """The head's scores of some rows with some items, by their numbers."""

        def score(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
            chosen = clips[items]
            with torch.inference_mode():
                return self.head(texts[rows], chosen.frames, chosen.mask).numpy()

        return score

    def probe(self, clips: ClipFeatures, texts: Tensor) -> ProbeResult:
        """The order probe with features that `encode` gave; the rows are complete pairs."""
        return order_probe(self.scorer(clips, texts), self.manifest)
