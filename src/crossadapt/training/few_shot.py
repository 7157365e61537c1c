"""From a `TrainJob` with the task few-shot to an adapter folder with its accuracy."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from crossadapt.adapters.attach import attached, frozen
from crossadapt.adapters.folder import save_adapter
from crossadapt.adapters.registry import get_method
from crossadapt.backbones.precision import choose_precision
from crossadapt.data import Ledger, Manifest
from crossadapt.errors import UserError
from crossadapt.evaluation.classification import ClassificationResult
from crossadapt.files import write_file
from crossadapt.tasks.base import read_options
from crossadapt.tasks.classes import Labelled, read_classes
from crossadapt.tasks.few_shot import (
    FewShotConfig,
)
from crossadapt.training.events import reset_peak_memory
from crossadapt.training.few_shot_card import make_few_shot_card
from crossadapt.training.few_shot_data import open_few_shot, read_few_shot
from crossadapt.training.few_shot_runner import FewShotRun
from crossadapt.training.job import TrainJob
from crossadapt.training.loop import FitResult
from crossadapt.training.record import plain, to_json, versions
from crossadapt.training.run import (
    RESULTS_FILE,
    _check_output,
    load_backbone,
)

FEW_SHOT = "few_shot"
PROTOCOLS = ("few-shot", "base-to-novel", "tip-official")


@dataclass(frozen=True)
class FewShotResult:
    """What `run_few_shot` made: the folder, accuracies before and after, and ``run.json``."""

    folder: Path
    fit: FitResult
    before: ClassificationResult
    after: ClassificationResult
    ledger: Ledger
    record: Mapping[str, Any]


def is_few_shot(job: TrainJob) -> bool:
    """Whether a job is about classes: it says so, or its method is built from examples."""
    task = job.task.replace("-", "_")
    return task == FEW_SHOT or (task == "auto" and get_method(job.method).few_shot)


def resolve_few_shot(job: TrainJob, manifest: Manifest) -> tuple[TrainJob, FewShotConfig, Labelled]:
    """The job with task, protocol, options and epochs in place; its options; the classes.

    Raises:
        UserError: an unknown protocol or option, clip settings, or data without classes.
    """
    for name in ("frames", "sampling", "pooling"):
        if getattr(job, name) is not None:
            raise UserError(f"{name} is for videos", where=name, fix=f"leave {name} out")
    if job.from_scratch:
        raise UserError("few-shot needs a trained backbone", where="backbone", fix="name one")
    options = dict(job.task_options)
    options |= {k: getattr(job, k) for k in ("shots", "label") if getattr(job, k) is not None}
    config = read_options(FewShotConfig, options, "few-shot")
    protocol = "few-shot" if job.protocol == "pairs" else job.protocol
    if protocol not in PROTOCOLS:
        raise UserError(
            f"few-shot has no protocol {protocol!r}",
            where="protocol",
            fix=f"use {', '.join(PROTOCOLS)}",
        )
    classes = read_classes(manifest, config.label)
    epochs = job.epochs
    if epochs is None and job.preset is None and get_method(job.method).few_shot:
        epochs = classes.known.epochs
    return (
        replace(job, task=FEW_SHOT, protocol=protocol, epochs=epochs, task_options=options),
        config,
        classes,
    )


def run_few_shot(job: TrainJob) -> FewShotResult:
    """Build or train what a job describes, choose alpha and beta, measure and save.

    Everything is chosen on the validation split (epoch, alpha, beta) and measured once on the test
    split; the protocol ``tip-official`` does as the released code does instead, for like-for-like
    comparison: the best epoch by test accuracy, and the larger of the accuracies before and after
    the search.

    Raises:
        UserError: anything wrong with settings, data or disk.
        KeyboardInterrupt: stopped; ``resume`` continues a method that trains.
    """
    begin = time.monotonic()
    reset_peak_memory()
    _check_output(job, Path(job.output))
    ledger = Ledger(Path(job.output) / "ledger.jsonl")
    manifest = read_few_shot(job, ledger)
    job, options, classes = resolve_few_shot(job, manifest)
    backbone = load_backbone(job, [])
    precision = choose_precision(job.precision, "cpu")
    backbone.use_attention(job.attention)
    data = open_few_shot(job, options, classes, manifest, backbone, ledger)
    templates = options.templates or classes.known.templates
    run = FewShotRun(job, options, backbone, precision, data, templates)
    trained = run.train(job.recipe(), manifest.fingerprint)
    with frozen(backbone):
        before = run.measure(own=False)
    chosen, after = run.choose()
    adapter = attached(backbone, "default")
    total = sum(p.numel() for p in backbone.model.parameters())
    record = {
        "job": plain(job),
        "recipe": asdict(job.recipe()),
        "identity": run.identity(manifest.fingerprint),
        "backbone": backbone.describe(),
        "data": {"source": str(job.data), "fingerprint": manifest.fingerprint,
                 "splits": manifest.split_sizes, "left_out": ledger.summary()},
        "held_out": data.test_name,
        "protocol": job.protocol,
        "few_shot": {"shots": options.shots, "templates": list(run.own_templates),
                     "label": options.label,
                     "classes": len(data.seen), "repeated_classes": data.repeated, **chosen},
        "trained": adapter.count(),
        "share": adapter.count() / total,
        "fit": asdict(trained),
        "before": before.to_dict(),
        "after": after.to_dict(),
        "precision": precision.name,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "seconds": time.monotonic() - begin,
        "versions": versions(),
    }  # fmt: skip
    result = FewShotResult(Path(job.output), trained, before, after, ledger, record)
    save_adapter(
        backbone,
        "default",
        result.folder,
        card=make_few_shot_card(record),
        run=json.loads(to_json(record)),
    )
    ranks = {"before": before.to_dict(answers=True), "after": after.to_dict(answers=True)}
    write_file(result.folder / RESULTS_FILE, to_json(ranks))
    return result
