"""Measure a backbone, frozen and with an adapter, on one split of some data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from crossadapt import backbones
from crossadapt.adapters.attach import frozen
from crossadapt.adapters.folder import RUN_FILE, load_adapter
from crossadapt.adapters.reading import read_adapter_config
from crossadapt.backbones.precision import choose_precision
from crossadapt.data import Ledger, Manifest, read_manifest
from crossadapt.errors import UserError
from crossadapt.evaluation.intervals import metric_intervals, paired_tests
from crossadapt.evaluation.metrics import RetrievalResult
from crossadapt.tasks.rerank import Rerank
from crossadapt.tasks.video_retrieval import VideoRetrievalConfig
from crossadapt.training.heldout import (
    VIDEO_TASK,
    Measure,
    Measured,
    as_shipped,
    open_probe,
    resolve_task,
    video_config,
)
from crossadapt.training.job import TrainJob
from crossadapt.training.splits import Split, open_split

DEFAULT_BACKBONE = "pico-clip"


@dataclass(frozen=True)
class Evaluation:
    """What `run_evaluation` found: the frozen model, the adapted one if there is an adapter."""

    held_out: Split
    frozen: Measured
    adapted: Measured | None
    ledger: Ledger
    facts: Mapping[str, Any]
    """Data, split, protocol, backbone, adapter."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know."""
    resized: Measured | None = None
    """The frozen model at the adapter's picture size where `frozen` is at its own."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: both results with intervals, and the paired test."""
        parts = {"frozen": self.frozen, "frozen_resized": self.resized, "adapted": self.adapted}
        there = {name: part.result for name, part in parts.items() if part is not None}
        document: dict[str, Any] = {**self.facts, "notes": list(self.notes)}
        document |= {name: result.to_dict() for name, result in there.items()}
        probes = {n: part.probe for n, part in parts.items() if part is not None}
        found = {name: probe.to_dict() for name, probe in probes.items() if probe is not None}
        if found:
            document["order_probe"] = found
        if self.frozen.reranked is not None:
            document["reranked"] = {
                name: part.reranked.to_dict()
                | ({"paired": _paired(part.result, part.reranked.result)})
                for name, part in parts.items()
                if part is not None and part.reranked is not None
            }
        document["left_out"] = self.ledger.summary()
        if self.frozen.result.groups > 1:
            document["intervals"] = {
                name: {m: i.to_dict() for m, i in metric_intervals(result).items()}
                for name, result in there.items()
            }
            if "adapted" in there:
                tests = paired_tests(there["frozen"], there["adapted"])
                document["paired"] = {m: test.to_dict() for m, test in tests.items()}
        return document


def run_evaluation(
    data: str,
    *,
    adapter: Path | None = None,
    backbone: str | None = None,
    protocol: str = "pairs",
    split: str = "test",
    reader: str = "auto",
    columns: Mapping[str, str] | None = None,
    split_seed: int | None = None,
    precision: str = "auto",
    workers: int | None = None,
    cache: Path | None = None,
    frames: int | None = None,
    sampling: Literal["segments", "1fps", "starts", "head", "tail"] | None = None,
    pooling: Literal["mean", "text-conditioned"] | None = None,
    rerank: int | None = None,
    rerank_weight: float = 0.0,
) -> Evaluation:
    """Measure on one split.

    Args:
        data: as for training.
        adapter: an adapter folder; without one only the frozen model is measured.
        backbone: source of the backbone; the adapter's own when None, without one `pico-clip`.
        protocol: name of the evaluation rule.
        split: which rows; ``all`` takes every row.
        reader: how to read the data.
        columns: which column is which.
        split_seed: seed of the hash split; the adapter's own when None.
        precision: number format of the encoders.
        workers: processes that decode.
        cache: folder of prepared pictures.
        frames: most frames of a clip; the adapter's own when None, as the next two.
        sampling: which frames of a clip.
        pooling: how frames meet a text; the frozen model is measured with the same.
        rerank: length of the shortlist that the fusion tower re-ranks; no second stage when None.
        rerank_weight: of the cosine beside the match logit.

    Raises:
        UserError: anything wrong with data, adapter, backbone or protocol.
    """
    second = None if rerank is None else Rerank(rerank, rerank_weight)
    saved = read_adapter_config(adapter) if adapter is not None else None
    record = _run_record(adapter)
    job = record.get("job", {})
    if record.get("classification") is not None:
        raise UserError(
            "this adapter was trained to classify, and evaluate measures retrieval",
            where=str(adapter),
            fix="its scores are in run.json; for other data see crossadapt.tasks.classifier",
        )
    if split_seed is None:
        split_seed = int(job.get("split_seed", 0))
    source = backbone or (saved["backbone"]["source"] if saved else DEFAULT_BACKBONE)
    ledger = Ledger()
    manifest = read_manifest(
        data, reader=reader, columns=columns, split_seed=split_seed, ledger=ledger
    )
    rows = manifest if split == "all" else manifest.select(split)
    if len(rows.group_names) < 2:
        raise UserError(
            f"the split {split!r} has one group: there is nothing to rank",
            where=data,
            fix="choose another split, or add data",
        )
    model = backbones.load(source)
    wanted = {"frames": frames, "sampling": sampling, "pooling": pooling}
    video = resolve_task(_video_job(data, job, wanted), manifest)
    opening: dict[str, Any] = {"ledger": ledger, "cache": cache, "workers": workers}
    probe = None
    if video.task == VIDEO_TASK:
        opening |= {"frames": video.frames, "sampling": video.sampling}
        probe = open_probe(manifest, model, **opening)
    held_out = open_split(model, rows, split, **opening)
    numbers, config = choose_precision(precision, "cpu"), video_config(video)
    measure = Measure(model, held_out, numbers, config, probe, second)
    if adapter is not None:
        load_adapter(model, adapter)
    with frozen(model):
        before, resized = measure(model, protocol), None
    after = measure(model, protocol) if adapter is not None else None
    if after is not None:
        own = as_shipped(source, manifest, held_out, numbers, config, protocol, second, **opening)
        before, resized = (before, None) if own is None else (own, before)
    facts: dict[str, Any] = {
        "data": data,
        "split": split,
        "protocol": protocol,
        "backbone": source,
        "adapter": str(adapter) if adapter is not None else None,
    }
    if video.task == VIDEO_TASK:
        facts |= {name: getattr(video, name) for name in wanted}
    return Evaluation(
        held_out, before, after, ledger, facts, tuple(_notes(record, manifest, split)), resized
    )


def _paired(shortlist: RetrievalResult, second: RetrievalResult) -> dict[str, Any]:
    """The paired tests of the second stage against the first; none for one group."""
    if shortlist.groups < 2:
        return {}
    return {m: test.to_dict() for m, test in paired_tests(shortlist, second).items()}


def _video_job(data: str, trained: Mapping[str, Any], wanted: Mapping[str, Any]) -> TrainJob:
    """How clips were looked at in training, with what is asked for here instead."""
    options = dict(trained.get("task_options") or {}) if trained.get("frames") else {}
    names = [f.name for f in fields(VideoRetrievalConfig)]
    said: dict[str, Any] = {k: trained.get(k) if v is None else v for k, v in wanted.items()}
    kept = {name: value for name, value in options.items() if name in names}
    return TrainJob(data=data, task_options=kept, **said)


def _run_record(adapter: Path | None) -> dict[str, Any]:
    """What training wrote beside the adapter; empty for an adapter that came without it."""
    path = adapter / RUN_FILE if adapter is not None else None
    if path is None or not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"the run record is not valid JSON: {error}",
            where=str(path),
            fix="remove the file, or restore it",
        ) from error
    return record if isinstance(record, dict) else {}


def _notes(record: Mapping[str, Any], manifest: Manifest, split: str) -> list[str]:
    """Warn when the adapter has seen what it is measured on."""
    trained_on = record.get("data", {}).get("fingerprint")
    if trained_on == manifest.fingerprint and split in ("train", "val", "all"):
        seen = {"train": "trained on", "val": "chosen on", "all": "trained partly on"}[split]
        return [f"The adapter was {seen} this split: the numbers are not held out."]
    return []
