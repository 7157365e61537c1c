"""Measuring one split of pictures or clips, frozen and adapted, with the head of the run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from crossadapt.adapters.attach import frozen
from crossadapt.adapters.registry import get_method
from crossadapt.backbones.loading import load
from crossadapt.backbones.resolution import split_resolution
from crossadapt.data import Ledger, Manifest
from crossadapt.errors import UserError
from crossadapt.evaluation.metrics import RetrievalResult
from crossadapt.evaluation.order_probe import ProbeResult, complete_pairs, probe_rows
from crossadapt.evaluation.protocols import Scores
from crossadapt.tasks.base import read_options
from crossadapt.tasks.clips import ClipFeatures, as_clips
from crossadapt.tasks.matching import fused
from crossadapt.tasks.rerank import Rerank, Reranked, reranked
from crossadapt.tasks.retrieval import HeldOut
from crossadapt.tasks.video_retrieval import HeldOutClips, VideoRetrievalConfig
from crossadapt.training.classifying import MULTIMODAL_TASK, Classified
from crossadapt.training.job import TrainJob
from crossadapt.training.splits import ClipView, Split, open_split, open_store, view_of

if TYPE_CHECKING:
    from crossadapt.backbones.hf import HFBackbone
    from crossadapt.backbones.precision import Precision

FRAMES, SAMPLING = 12, "segments"
"""How clips are sampled unless a job says otherwise."""
VIDEO_TASK = "video_retrieval"
CLIP_TASKS = (VIDEO_TASK, MULTIMODAL_TASK)
"""Tasks that take clips; a picture is then a clip of one frame."""
_VIDEO_ONLY = ("frames", "sampling", "pooling")


@dataclass(frozen=True)
class Measured:
    """One model on the held-out split: the result and the features it came from.

    `images` are the features of pictures, or of all frames of clips. `scores` gives the scores of
    some texts with some clips (None for pictures: cosines); `probe` is the order probe, when the
    data has one.
    """

    result: RetrievalResult
    images: Tensor | ClipFeatures
    texts: Tensor
    scores: Scores | None = None
    probe: ProbeResult | None = None
    reranked: Reranked | None = None


class Measure:
    """What measures a backbone on a split: `measure(backbone, protocol)` as often as you like.

    Args:
        backbone: its tokenizer is used once, here.
        split: rows with their pictures or clips.
        precision: of the encoders.
        config: how frames meet texts; None for pictures.
        probe: rows and clips of the order probe.
        rerank: second stage; none when None.

    Raises:
        UserError: re-ranking of clips, or by a backbone without fusion tower.
    """

    def __init__(
        self,
        backbone: HFBackbone,
        split: Split,
        precision: Precision,
        config: VideoRetrievalConfig | None = None,
        probe: Split | None = None,
        rerank: Rerank | None = None,
    ) -> None:
        self.rerank = rerank
        if rerank is not None:
            fused(backbone, "re-ranking")
            if isinstance(split.pixels, ClipView) or config is not None:
                raise UserError(
                    "clips are not re-ranked", where="rerank", fix="leave it out, or use pictures"
                )
        self.held_out: HeldOut | HeldOutClips
        self.probe: HeldOutClips | None = None
        if isinstance(split.pixels, ClipView) or config is not None:
            head = (config or VideoRetrievalConfig()).head()
            pixels = as_clips(split.pixels)
            self.held_out = HeldOutClips(backbone, split.manifest, pixels, head, precision)
            if probe is not None:
                pixels = as_clips(probe.pixels)
                self.probe = HeldOutClips(backbone, probe.manifest, pixels, head, precision)
        else:
            self.held_out = HeldOut(backbone, split.manifest, split.pixels, precision)

    def __call__(self, backbone: HFBackbone, protocol: str) -> Measured:
        """Score the backbone with whatever adapter is active."""
        if isinstance(self.held_out, HeldOut):
            images, texts = self.held_out.encode(backbone)
            result = self.held_out.score(images, texts, protocol)
            second = None
            if self.rerank is not None:
                second = reranked(backbone, self.held_out, images, texts, self.rerank, protocol)
            return Measured(result, images, texts, reranked=second)
        clips, texts = self.held_out.encode(backbone)
        probe = None
        if self.probe is not None:
            probed, said = self.probe.encode(backbone)
            probe = self.probe.probe(probed, said)
        return Measured(
            self.held_out.score(clips, texts, protocol),
            clips,
            texts,
            self.held_out.scorer(clips, texts),
            probe,
        )


def measure_run(
    job: TrainJob,
    backbone: HFBackbone,
    manifest: Manifest,
    held_out: Split,
    precision: Precision,
    **opening: Any,
) -> tuple[Measured, Measured | None, Measured]:
    """The frozen model as it ships, the same at the run's picture size if that is another one,
    and the trained model, on the held-out split of a run.

    `opening` is as for `open_probe`.
    """
    config = video_config(job)
    probe = open_probe(manifest, backbone, **opening) if job.task == VIDEO_TASK else None
    measure = Measure(backbone, held_out, precision, config, probe)
    with frozen(backbone):
        before = measure(backbone, job.protocol)
    after = measure(backbone, job.protocol)
    comparing = manifest, held_out, precision, config, job.protocol
    own = as_shipped(job.backbone, *comparing, device=backbone.device, **opening)
    return (before, None, after) if own is None else (own, before, after)


def as_shipped(
    source: str,
    manifest: Manifest,
    split: Split,
    precision: Precision,
    config: VideoRetrievalConfig | None,
    protocol: str,
    rerank: Rerank | None = None,
    device: torch.device | str = "cpu",
    **opening: Any,
) -> Measured | None:
    """The frozen model at its own picture size, for a `source` that names another; else None.

    It is what adapted models are compared with: without an adapter a user has the model as it
    ships, and a frozen model at another size than its own is usually worse.

    Args:
        source: of the backbone, such as ``pico-clip@72``.
        manifest: all rows, for the order probe of clips.
        split: the rows to measure on, opened at any size.
        precision, config, protocol, rerank: as for `Measure`.
        opening: as for `open_probe`.
    """
    plain, pixels = split_resolution(source)
    if pixels is None:
        return None
    backbone = load(plain).to(device)
    if backbone.image_size == (pixels, pixels):
        return None
    # What cannot be read is in the caller's ledger already.
    opening = {**opening, "ledger": Ledger()}
    own = open_split(backbone, split.manifest, split.name, **opening)
    probe = open_probe(manifest, backbone, **opening) if config is not None else None
    return Measure(backbone, own, precision, config, probe, rerank)(backbone, protocol)


def resolve_task(job: TrainJob, manifest: Manifest) -> TrainJob:
    """The job with its task, and with clip settings in place when it is about clips.

    `auto` becomes the method's own task if it has one, else video retrieval when any item is a
    video, else retrieval.

    Raises:
        UserError: clip settings for a task that takes pictures.
    """
    task = job.task.replace("-", "_")
    if task == "auto":
        own = get_method(job.method).task
        task = own or (VIDEO_TASK if has_videos(manifest) else "retrieval")
    if task == VIDEO_TASK:
        options = dict(job.task_options)
        if job.pooling is not None:
            options["pooling"] = job.pooling
        return replace(
            job,
            task=task,
            task_options=options,
            frames=job.frames or FRAMES,
            sampling=job.sampling or SAMPLING,
            pooling=options.get("pooling", VideoRetrievalConfig.pooling),
        )
    if task == MULTIMODAL_TASK:
        return _multimodal(job, has_videos(manifest))
    for name in _VIDEO_ONLY:
        if getattr(job, name) is not None:
            raise UserError(
                f"{name} is for videos, and the task {task} takes pictures",
                where=name,
                fix=f"leave {name} out, or give --task video-retrieval",
            )
    return replace(job, task=task)


def _multimodal(job: TrainJob, videos: bool) -> TrainJob:
    """A classification job with its clip settings.

    The baseline is a trained model, the linear probe, which any adapter starts below: the guard
    is off unless it is asked for.
    """
    if job.pooling is not None:
        raise UserError(
            "pooling is for video retrieval",
            where="pooling",
            fix="set the task option pooling to mean or concat",
        )
    return replace(
        job,
        task=MULTIMODAL_TASK,
        frames=(job.frames or FRAMES) if videos else None,
        sampling=(job.sampling or SAMPLING) if videos else None,
        guard=0 if job.guard is None else job.guard,
    )


def has_videos(manifest: Manifest) -> bool:
    """Whether any item is a video."""
    return "video" in manifest.table.column("kind").to_pylist()


def video_config(job: TrainJob) -> VideoRetrievalConfig | None:
    """How a resolved job measures clips; None when its task takes pictures."""
    if job.task != VIDEO_TASK:
        return None
    return read_options(VideoRetrievalConfig, job.task_options, "video-retrieval")


def open_probe(
    manifest: Manifest,
    backbone: HFBackbone,
    *,
    ledger: Ledger,
    cache: Path | Literal[False] | None = None,
    workers: int | None = None,
    frames: int | None = None,
    sampling: str | None = None,
) -> Split | None:
    """The order probe of some data, its clips decoded; None when there is none.

    Pairs of which a clip cannot be read are left out. Args as `splits.open_store`.
    """
    rows = probe_rows(manifest)
    if rows is None:
        return None
    settings: dict[str, Any] = {"frames": frames or FRAMES, "sampling": sampling or SAMPLING}
    store = open_store(rows, backbone, ledger=ledger, cache=cache, workers=workers, **settings)
    readable = complete_pairs(rows.without(store.unreadable))
    if readable is None:
        return None
    return Split("probe", readable, view_of(store, readable.items))


def probe_record(
    before: Measured | Classified | None, after: Measured | Classified | None
) -> dict[str, Any] | None:
    """The order probe before and after, as plain JSON types; None when there was none."""
    if before is None or before.probe is None:
        return None
    there = {"before": before, "after": after}
    return {k: m.probe.to_dict() for k, m in there.items() if m is not None and m.probe is not None}


def task_chosen(job: TrainJob) -> str:
    """What was made of data with videos; nothing for pictures."""
    if job.task != VIDEO_TASK:
        return ""
    return (
        f"the data hold videos: task video-retrieval, up to {job.frames} frames a clip "
        f"({job.sampling}), {job.pooling} pooling"
    )
