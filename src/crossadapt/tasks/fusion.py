"""Fusion: train HADA on the features of a fused backbone's members, which are computed once.

The loss is `momentum_contrast`; batches, validation and checkpoints are those of retrieval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossadapt.adapters.attach import active
from crossadapt.adapters.reading import read_adapter_config
from crossadapt.adapters.warm_start import start_from
from crossadapt.backbones.base import TokenBatch
from crossadapt.backbones.fused import FusedBackbone
from crossadapt.backbones.precision import Precision, choose_precision
from crossadapt.data.manifest import Manifest
from crossadapt.data.sampling import PairSampler
from crossadapt.errors import UserError
from crossadapt.methods.hada import HadaFusion
from crossadapt.tasks import objectives
from crossadapt.tasks.base import Batch, Features, Inputs, TaskSetup, read_options
from crossadapt.tasks.clips import pictures_only
from crossadapt.tasks.encode import Pixels, cut, stack_pixels
from crossadapt.tasks.held_out import HeldOut, scores
from crossadapt.tasks.member_features import MemberFeatures, Moments, flat, unflat
from crossadapt.tasks.momentum_contrast import FusionConfig, MomentumContrast

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.base import Backbone

TOWERS: dict[str, Literal["vision", "text"]] = {"image": "vision", "text": "text"}


class FusionTask:
    """Learn to fuse; see the module's text. Validation is that of retrieval.

    Args:
        backbone: a fused one with a hada adapter active.
        train: rows to learn from.
        pixels: prepared pictures of ``train.items``.
        validation: held-out rows; None for none.
        validation_pixels: prepared pictures of ``validation.items``.
        batch_size: pairs of a global batch; a smaller last one is left out.
        captions: ``one`` random text per picture and epoch, or ``all``.
        seed: of the order of rows and of the queue's first vectors.
        precision: of the frozen towers and of validation.
        config: options.

    Raises:
        UserError: another method, one group only, or a queue that is no multiple of the batch.
    """

    name = "fusion"
    headline = "rsum"
    trains_join = True

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
        seed: int = 0,
        precision: Precision | None = None,
        config: FusionConfig | None = None,
    ) -> None:
        self.config = config or FusionConfig()
        self.backbone, self.fusion = _hada(backbone)
        if len(train.group_names) < 2:
            raise UserError(
                f"the training split has {len(train.group_names)} group: nothing to tell apart",
                where=train.source or "train split",
                fix="add data, or change the split so that at least two items are trained on",
            )
        self.train, self.pixels = train, pixels
        self.precision = precision or choose_precision("auto", str(backbone.device))
        self.sampler = PairSampler(train, batch_size, seed=seed, captions=captions, drop_last=True)
        tokens = backbone.tokenize(train.texts)
        self._ids, self._mask = tokens.ids.int(), tokens.mask
        self._keys = torch.stack(
            [torch.from_numpy(train.groups), objectives.text_keys(train.texts)], 1
        )
        if self.config.start_from:
            self._warm_start(Path(self.config.start_from))
        self.stores = self._see(self.config.cache_mb * 2**20)
        self.objective = MomentumContrast(self.fusion, self.config, batch_size, seed)
        self.validation = None
        if validation is not None and validation_pixels is not None:
            self.validation = HeldOut(backbone, validation, validation_pixels, precision)

    def _see(self, budget: int) -> dict[str, MemberFeatures]:
        """Look at all training rows once: their features, and the scale of these."""
        moments = Moments()
        device = self.backbone.device

        def pictures(rows: np.ndarray) -> Any:
            with self.precision.autocast():
                return self._look("image", (stack_pixels(self.pixels, rows).to(device),))

        def texts(rows: np.ndarray) -> Any:
            index = torch.from_numpy(rows)
            tokens = cut(TokenBatch(self._ids[index], self._mask[index]))
            with self.precision.autocast():
                return self._look("text", (tokens.ids.to(device), tokens.mask.to(device)))

        images = MemberFeatures(len(self.train.items), pictures, budget, moments)
        left = budget - images.bytes
        found = {"image": images, "text": MemberFeatures(len(self._ids), texts, left, moments)}
        if self.fusion.config.inputs == "standardised" and not self.config.start_from:
            self.fusion.set_scale(moments.mean, moments.deviation)
        return found

    def _warm_start(self, folder: Path) -> None:
        """Take the values of a trained adapter; the shares of a mix it has not keep their start."""
        adapter = cast("AttachedAdapter", active(self.backbone))
        plain = read_adapter_config(folder)["config"].get("mix") == "none"
        start_from(self.backbone, adapter, folder, own=("join.mix",) if plain else ())

    # -- batches ------------------------------------------------------------------------------

    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.sampler)

    def batches(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """Rows of each global batch, from batch `start` on."""
        return self.sampler.batches(epoch, start)

    def collate(self, rows: np.ndarray) -> Batch:
        """The members' features of the rows, or pixels and ids where these are not kept."""
        index = torch.from_numpy(rows)
        items = self.train.item_index[rows]
        images = self.stores["image"].rows(torch.from_numpy(items))
        if images is None:
            images = (stack_pixels(self.pixels, items),)
        texts = self.stores["text"].rows(index)
        if texts is None:
            tokens = cut(TokenBatch(self._ids[index], self._mask[index]))
            texts = (tokens.ids, tokens.mask)
        return Batch({"image": images, "text": texts}, {"keys": self._keys[index]}, len(rows))

    def _look(self, stream: str, inputs: Inputs) -> Any:
        """What the members see of pixels (B, 3, H, W) uint8, or of ids and mask (B, L)."""
        if stream == "image":
            return self.backbone.look_at_images(self.backbone.preprocess.normalise(inputs[0]))
        return self.backbone.look_at_texts(*inputs)

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """``[z ; z' ; e_1 .. e_n]`` (rows, 2 P + sum of D_i): the branch's unit vectors, those of
        its momentum copy, and the members' own. Only z has a graph."""
        if self.stores[stream].kept is None:
            with torch.no_grad():
                inputs = flat(self._look(stream, inputs))
        seen = unflat(inputs)
        z, slow = self.objective.vectors(TOWERS[stream], self.fusion.prepare(seen))
        own = [F.normalize(member.embedding.float(), dim=-1) for member in seen]
        return torch.cat([z, slow, *own], 1)

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The loss over the rows of all processes, its parts, temperature and shares of the mix."""
        rows = {name: objectives.gather(x).float() for name, x in features.items()}
        keys = objectives.gather(batch.targets["keys"])
        return self.objective.loss(rows, keys, self.objective.steps / self.steps_per_epoch())

    def after_step(self) -> None:
        """See `tasks.base.StatefulTask`."""
        self.objective.after_step()

    def state(self) -> Mapping[str, Tensor]:
        """Momentum copies, queue and the count of steps."""
        return self.objective.state()

    def validate(self, backbone: Backbone) -> dict[str, float]:
        """Recalls and `rsum` in percent of the fused embedding; empty without validation rows."""
        return {} if self.validation is None else scores(self.validation.evaluate(backbone))

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The temperature: retrieval does not need it, so it is no part of the adapter."""
        return {"temperature": self.objective.temperature}


def make_task(setup: TaskSetup, options: Mapping[str, Any]) -> FusionTask:
    """The fusion task of a run.

    Raises:
        UserError: also for an objective other than its own.
    """
    if setup.objective != "info-nce":
        raise UserError(
            f"the task fusion has its own loss, not {setup.objective}",
            where="objective",
            fix="leave the objective out",
        )
    held_out = setup.validation_pixels
    return FusionTask(
        setup.backbone,
        setup.train,
        pictures_only(setup.pixels, "fusion"),
        validation=setup.validation,
        validation_pixels=None if held_out is None else pictures_only(held_out, "fusion"),
        batch_size=setup.batch_size,
        captions=setup.captions,
        seed=setup.seed,
        precision=setup.precision,
        config=read_options(FusionConfig, options, "fusion"),
    )


def _hada(backbone: Backbone) -> tuple[FusedBackbone, HadaFusion]:
    adapter = active(backbone)
    fusion = None if adapter is None else adapter.join
    if not isinstance(backbone, FusedBackbone) or not isinstance(fusion, HadaFusion):
        raise UserError(
            "the task fusion trains the method hada",
            where="task",
            fix="give --method hada and --backbone fuse:A+B, or leave the task out",
        )
    return backbone, fusion
