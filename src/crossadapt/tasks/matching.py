"""Retrieval for backbones with a fusion tower: contrast in the shared space and matching of pairs.

L = L_ITC + weight L_ITM, after BLIP (Li et al. 2022, arXiv 2201.12086) and, for adapters,
UniAdapter (Lu et al. 2023, arXiv 2302.06605).

ITC. Features u (pictures) and v (texts); u', v' those of a momentum copy of the trained tensors,
with a queue of earlier ones. Each u meets all v', each v all u'; targets are
``alpha softmax(u' . v' / t) + (1 - alpha) y`` with y spread over the pairs that belong together and
alpha rising from 0 over the first epoch.

ITM. Each text with its picture; each text with a wrong picture and each picture with a wrong text
of the batch, drawn in proportion to ``exp(u . v / t)``: hard negatives. Cross-entropy of the
matching head, over three pairs per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from crossadapt.adapters.attach import active
from crossadapt.backbones.blip import BlipBackbone
from crossadapt.backbones.precision import choose_precision
from crossadapt.errors import UserError
from crossadapt.tasks import objectives
from crossadapt.tasks.base import Batch, Features, Inputs, TaskSetup, read_options
from crossadapt.tasks.clips import pictures_only
from crossadapt.tasks.encode import patch_drop
from crossadapt.tasks.momentum import FeatureQueue, MomentumCopy
from crossadapt.tasks.retrieval import RetrievalConfig, RetrievalTask

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

SUFFIX = "_momentum"
KEYS = ("group", "text")


@dataclass(frozen=True)
class MatchingConfig(RetrievalConfig):
    """What matching has beyond the settings of every run."""

    alpha: float = 0.4
    """Share of the momentum copy's own similarities in the targets of the contrastive loss."""
    momentum: float = 0.995
    """Decay of the running mean of the trained tensors."""
    queue: int = 57_600
    """Most earlier pairs to contrast with. Never more than there are training pairs: beyond that
    it would hold the same pairs again."""
    match_weight: float = 1.0
    """Weight of the matching loss beside the contrastive one."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        super().__post_init__()
        bounds = {
            "alpha": 0 <= self.alpha <= 1,
            "momentum": 0 <= self.momentum < 1,
            "queue": self.queue >= 0,
            "match_weight": self.match_weight > 0,
        }
        for name, fine in bounds.items():
            if not fine:
                raise UserError(f"{name} is {getattr(self, name)}", where="task_options",
                                fix="see crossadapt train --help")  # fmt: skip


class MatchingTask(RetrievalTask):
    """Learn to find pictures and texts fast, and to judge the pairs found.

    The gradient cache is exact here too: the stream ``image`` is the picture's tokens
    (rows, N, width), from which the loss takes both the feature and what the fusion tower looks at.
    The fusion tower itself runs inside the loss, on all pairs at once, so its activations are not
    cut into chunks. One process only: negatives and queue are this process's own.

    Args and errors as for `RetrievalTask`, and:

    Raises:
        UserError: the backbone has no fusion tower, there is no adapter, or several processes.
    """

    name = "matching"

    def __init__(self, backbone: Backbone, *args: Any, **kwargs: Any) -> None:
        super().__init__(backbone, *args, **kwargs)
        fused(backbone, "the task matching")
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise UserError(
                "the task matching runs in one process",
                where="task",
                fix="start it without a launcher, or use the task retrieval",
            )
        adapter = active(backbone)
        if adapter is None:
            raise UserError("nothing is trained", where="task matching", fix="attach an adapter")
        config = self.config
        self.matching = config if isinstance(config, MatchingConfig) else MatchingConfig()
        self.precision = kwargs.get("precision") or choose_precision("auto", str(backbone.device))
        self.momentum = MomentumCopy(adapter.trained(), self.matching.momentum)
        size = min(self.matching.queue, len(self.train.texts))
        self.queue = FeatureQueue(size, backbone.embedding_dim, KEYS, backbone.device)
        self._steps = torch.zeros((), dtype=torch.int64)

    def collate(self, rows: np.ndarray) -> Batch:
        """As for retrieval, with the momentum copy's streams in front."""
        batch = super().collate(rows)
        streams = {f"{name}{SUFFIX}": batch.inputs[name] for name in ("image", "text")}
        ids, mask = batch.inputs["text"]
        targets = {**batch.targets, "ids": ids, "mask": mask}
        return Batch({**streams, **batch.inputs}, targets, batch.pairs)

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """Tokens (rows, N, width) of pictures, features (rows, D) of all other streams."""
        model = fused(backbone, "the task matching")
        if stream.endswith(SUFFIX):
            with self.momentum.in_place():
                if stream.startswith("text"):
                    return model.encode_text(*inputs)
                return model.encode_image(model.preprocess.normalise(inputs[0]))
        if stream == "text":
            return model.encode_text(*inputs)
        with patch_drop(backbone, self.config.token_drop):
            return model.encode_image_tokens(model.preprocess.normalise(inputs[0]))

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Contrast plus matching, and each of them."""
        model = fused(backbone, "the task matching")
        tokens = features["image"]
        with self.precision.autocast():
            images = model.pool_tokens(tokens)
        images, texts, slow_images, slow_texts = (
            F.normalize(x.float(), dim=-1)
            for x in (images, features["text"], features["image_momentum"],
                      features["text_momentum"])
        )  # fmt: skip
        scale = model.logit_scale.exp()
        ramp = min(1.0, int(self._steps) / self.steps_per_epoch())
        contrast = momentum_contrast(
            (images, texts), (slow_images, slow_texts), self.queue, batch.targets,
            scale=scale, alpha=self.matching.alpha * ramp,
        )  # fmt: skip
        same = objectives.same(*(batch.targets[key] for key in KEYS))
        match = self._match(model, tokens, batch, scale * images.detach() @ texts.detach().T, same)
        self.queue.add({"image": slow_images, "text": slow_texts}, batch.targets)
        total = contrast + self.matching.match_weight * match
        return total, {"contrast": contrast.item(), "match": match.item()}

    def _match(
        self, model: BlipBackbone, tokens: Tensor, batch: Batch, logits: Tensor, same: Tensor
    ) -> Tensor:
        """Mean cross-entropy of the matching head over right and hard wrong pairs."""
        ids, mask = batch.targets["ids"], batch.targets["mask"]
        rows = torch.arange(len(ids), device=ids.device)
        # For each text a wrong picture, for each picture a wrong text.
        text_rows, wrong_images = hard_negatives(logits.T, same.T)
        image_rows, wrong_texts = hard_negatives(logits, same)
        texts = torch.cat([rows, text_rows, wrong_texts])
        images = torch.cat([rows, wrong_images, image_rows])
        labels = (torch.arange(len(texts), device=ids.device) < len(rows)).long()
        with self.precision.autocast():
            found = model.match(ids[texts], mask[texts], tokens[images])
        return F.cross_entropy(found.float(), labels)

    def after_step(self) -> None:
        """Let the momentum copy follow, and count the step."""
        self.momentum.update()
        self._steps += 1

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside trained tensors: momentum copy, queue, steps; live."""
        return {**self.momentum.state(), **self.queue.state(), "steps": self._steps}


def fused(backbone: Backbone, what: str) -> BlipBackbone:
    """The backbone, if it has a fusion tower.

    Raises:
        UserError: it has none.
    """
    if not isinstance(backbone, BlipBackbone):
        raise UserError(
            f"{what} needs a backbone with a fusion tower, {backbone.source} has none",
            where=f"family {backbone.family}",
            fix="use a BLIP backbone, such as Salesforce/blip-itm-base-coco",
        )
    return backbone


def hard_negatives(logits: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of logits (N, M) a column that does not belong to it, drawn from the softmax.

    Args:
        logits: similarities over the temperature.
        same: bool (N, M), True where row and column belong together; never drawn.

    Returns:
        Rows (n,) that have a wrong column at all, and the column drawn for each.
    """
    rows = (~same).any(dim=1).nonzero().squeeze(1)
    weights = logits[rows].float().masked_fill(same[rows], -torch.inf).softmax(dim=1)
    if not len(rows):
        return rows, rows
    return rows, torch.multinomial(weights, 1).squeeze(1)


def momentum_contrast(
    fast: tuple[Tensor, Tensor],
    slow: tuple[Tensor, Tensor],
    queue: FeatureQueue,
    keys: Mapping[str, Tensor],
    *,
    scale: Tensor,
    alpha: float,
) -> Tensor:
    """L_ITC of this module's text, for unit features (N, D) of pictures and texts.

    Args:
        fast: features with gradient.
        slow: those of the momentum copy.
        queue: earlier ones of the momentum copy.
        keys: the integer keys (N,) of each pair; pairs that agree in any belong together.
        scale: 1 / temperature.
        alpha: weight of the soft targets.
    """
    known = {key: torch.cat([keys[key], queue.key(key)]) for key in KEYS}
    right = torch.stack([keys[k][:, None] == known[k][None] for k in KEYS]).any(dim=0)
    total = fast[0].new_zeros(())
    for mine, other in ((0, "text"), (1, "image")):
        against = torch.cat([slow[1 - mine], queue.features(other)])
        target = itc_targets(scale * slow[mine] @ against.T, right, alpha)
        total = total - (target * (scale * fast[mine] @ against.T).log_softmax(dim=1)).sum(1).mean()
    return total / 2


@torch.no_grad()
def itc_targets(logits: Tensor, right: Tensor, alpha: float) -> Tensor:
    """Soft targets (N, M): each row sums to 1, and what belongs to it shares ``1 - alpha``."""
    hard = right.float() / right.sum(dim=1, keepdim=True)
    return alpha * logits.float().softmax(dim=1) + (1 - alpha) * hard


def make_task(setup: TaskSetup, options: Mapping[str, Any]) -> MatchingTask:
    """The matching task of a run."""
    held_out = setup.validation_pixels
    if held_out is not None:
        held_out = pictures_only(held_out, "matching")
    if setup.objective != "info-nce":
        raise UserError("matching has its own loss", where="objective", fix="leave it out")
    return MatchingTask(
        setup.backbone,
        setup.train,
        pictures_only(setup.pixels, "matching"),
        validation=setup.validation,
        validation_pixels=held_out,
        batch_size=setup.batch_size,
        captions=setup.captions,
        seed=setup.seed,
        precision=setup.precision,
        config=read_options(MatchingConfig, options, "matching"),
    )
