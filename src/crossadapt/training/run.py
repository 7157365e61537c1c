"""From a `TrainJob` to a folder with an adapter, its card, its record and its before and after."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from crossadapt import backbones
from crossadapt.adapters.attach import attach
from crossadapt.adapters.folder import save_adapter
from crossadapt.adapters.merge import merge
from crossadapt.adapters.registry import make_config
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.lean import hold_products_in_bf16, keep_less_for_backward
from crossadapt.backbones.precision import Precision, choose_precision
from crossadapt.data import DuplicateReport, Ledger, read_manifest
from crossadapt.errors import UserError, did_you_mean
from crossadapt.files import write_file
from crossadapt.tasks.base import Task, TaskSetup
from crossadapt.tasks.multimodal import MultimodalTask
from crossadapt.tasks.multimodal_options import with_modalities
from crossadapt.training.card import make_card
from crossadapt.training.classifying import MULTIMODAL_TASK, Classified, classify, details
from crossadapt.training.config import Recipe
from crossadapt.training.events import reset_peak_memory
from crossadapt.training.heldout import (
    VIDEO_TASK,
    Measured,
    measure_run,
    probe_record,
    resolve_task,
    task_chosen,
)
from crossadapt.training.job import TrainJob
from crossadapt.training.loop import FitResult, fit
from crossadapt.training.record import plain, to_json, versions
from crossadapt.training.splits import Split, Splits, leak_note, open_splits

RESULTS_FILE = "results.json"
# Tasks that encode under autocast and in no other way.
LEAN_TASKS = ("retrieval", VIDEO_TASK)


@dataclass(frozen=True)
class RunResult:
    """What `run_training` made.

    `folder` is the job's output; the adapter (or, for a new model, ``backbone/``) is in it.
    `before` and `after` are the frozen and the trained model on `held_out`; None without one.
    `resized` is the frozen model at the run's picture size, where that is not its own: `before`
    is then the model at its own size.
    `record` is the content of ``run.json``.
    """

    folder: Path
    fit: FitResult
    held_out: Split | None
    before: Measured | Classified | None
    after: Measured | Classified | None
    ledger: Ledger
    duplicates: DuplicateReport
    record: Mapping[str, Any]
    resized: Measured | None = None


def run_training(job: TrainJob) -> RunResult:
    """Train what a job describes and save the best checkpoint with its measurements.

    Raises:
        UserError: anything wrong with settings, data or disk; a loss that is not a number; a model
            that never beat zero-shot validation.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; all is saved and ``resume`` continues.
    """
    begin = time.monotonic()
    reset_peak_memory()
    job.recipe()  # numbers no run can have are refused before any file is read
    output = Path(job.output)
    _check_output(job, output)
    accelerator = Accelerator(cpu=job.device == "cpu")
    device = accelerator.device
    if job.device == "cuda" and device.type != "cuda":
        raise UserError("there is no CUDA device", where="device", fix="use cpu or auto")
    precision = choose_precision(job.precision, str(device))
    ledger = Ledger(output / "ledger.jsonl")

    with accelerator.main_process_first():
        manifest = read_manifest(
            job.data,
            reader=job.reader,
            columns=job.columns,
            split_seed=job.split_seed,
            ledger=ledger,
        )
        chosen, job = job.task, resolve_task(job, manifest)
        recipe = job.recipe()
        backbone = load_backbone(job, manifest.select("train").texts)
        if chosen == "auto" and job.task == "retrieval" and "fusion" in backbone.towers:
            job = replace(job, task="matching")
        opening: dict[str, Any] = {"ledger": ledger, "cache": job.cache, "workers": job.workers}
        if job.frames is not None:
            opening |= {"frames": job.frames, "sampling": job.sampling}
        splits = open_splits(manifest, backbone, **opening)
    if accelerator.is_main_process and not job.quiet:
        videos = task_chosen(job) if chosen == "auto" else ""
        _tell(manifest.summary(), videos, ledger.render(), leak_note(splits.duplicates))
    backbone.to(device)
    backbone.use_attention(job.attention)
    config = method_config(job)
    if job.task == MULTIMODAL_TASK:
        config = with_modalities(config, backbone, splits.train.manifest, job.task_options)
    adapter = attach(backbone, config, name="default", seed=job.seed)
    task = make_task(job, recipe, backbone, splits, precision, ledger)
    if job.task in LEAN_TASKS and not (job.from_scratch or adapter.has_roots):
        hold_products_in_bf16(backbone, precision, keep=adapter.copied)
        keep_less_for_backward(backbone)
    identity = {
        "data": manifest.fingerprint,
        "backbone": backbone.fingerprint,
        "method": job.method,
        "config": plain(config),
        "task": job.task,
        "task_options": dict(job.task_options),
        "objective": job.objective,
    }
    if job.frames is not None:
        identity |= {"frames": job.frames, "sampling": job.sampling}
    trained = fit(
        backbone,
        task,
        recipe,
        output=output,
        seed=job.seed,
        precision=precision,
        identity=identity,
        resume=job.resume,
        quiet=job.quiet,
        accelerator=accelerator,
    )
    _check_end(trained, task, output)

    held_out = splits.test or splits.val
    before: Measured | Classified | None = None
    resized: Measured | None = None
    after: Measured | Classified | None = None
    classified: dict[str, Any] | None = None
    if held_out is not None and isinstance(task, MultimodalTask):
        before, after, classified = classify(task, backbone, held_out)
    elif held_out is not None:
        measured = measure_run(job, backbone, manifest, held_out, precision, **opening)
        before, resized, after = measured
    total = sum(p.numel() for p in backbone.model.parameters())
    record = {
        "job": plain(job),
        "recipe": asdict(recipe),
        "identity": identity,
        "backbone": backbone.describe(),
        "data": {"source": str(job.data), "fingerprint": manifest.fingerprint,
                 "splits": manifest.split_sizes, "left_out": ledger.summary()},
        "leakage": {"pictures": len(splits.duplicates.picture_leaks),
                    "texts": len(splits.duplicates.caption_leaks)},
        "held_out": held_out.name if held_out is not None else None,
        "protocol": job.protocol,
        "trained": adapter.count(),
        "share": adapter.count() / total,
        "fit": asdict(trained),
        "before": before.result.to_dict() if before is not None else None,
        "before_resized": resized.result.to_dict() if resized is not None else None,
        "after": after.result.to_dict() if after is not None else None,
        "classification": classified,
        "order_probe": probe_record(before, after),
        "precision": precision.name,
        "device": str(device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "seconds": time.monotonic() - begin,
        "versions": versions(),
    }  # fmt: skip
    result = RunResult(
        output, trained, held_out, before, after, ledger, splits.duplicates, record, resized
    )
    if accelerator.is_main_process:
        _save(job, result, backbone)
        if isinstance(task, MultimodalTask):
            task.save(output)
    accelerator.wait_for_everyone()
    return result


def load_backbone(job: TrainJob, corpus: list[str]) -> HFBackbone:
    """The job's backbone; the tokenizer of a new one is made from the training texts."""
    extra: dict[str, Any] = {"corpus": corpus, "seed": job.seed} if job.from_scratch else {}
    return backbones.load(job.backbone, attention=job.attention, **extra)


def method_config(job: TrainJob) -> Any:
    """The config instance of the job's method; an instance given as options is used as it is."""
    options: Any = job.method_options
    if is_dataclass(options):
        return options
    if job.from_scratch and job.method == "full":
        options = {"scope": "all", **options}
    return make_config(job.method, options)


def make_task(
    job: TrainJob,
    recipe: Recipe,
    backbone: HFBackbone,
    splits: Splits,
    precision: Precision,
    ledger: Ledger | None = None,
) -> Task:
    """The task of a job: ``make_task(setup, options)`` of the file it names.

    Raises:
        UserError: no such task, or an option it does not have.
    """
    package = Path(__file__).parent.parent / "tasks"
    names = [p.stem for p in package.glob("*.py") if "def make_task(" in p.read_text("utf-8")]
    if job.task not in names:
        raise UserError(
            f"there is no task {job.task!r}", where="task", fix=did_you_mean(job.task, names)
        )
    setup = TaskSetup(
        backbone=backbone,
        train=splits.train.manifest,
        pixels=splits.train.pixels,
        validation=splits.val.manifest if splits.val is not None else None,
        validation_pixels=splits.val.pixels if splits.val is not None else None,
        batch_size=recipe.batch_size,
        captions=recipe.captions,
        objective=job.objective,
        seed=job.seed,
        precision=precision,
        ledger=ledger,
    )
    module = importlib.import_module(f"crossadapt.tasks.{job.task}")
    return module.make_task(setup, job.task_options)


def _tell(*texts: str) -> None:
    """What a person should know before the training starts."""
    for text in filter(None, texts):
        print(text, file=sys.stderr)


def _check_output(job: TrainJob, output: Path) -> None:
    """Refuse to mix two runs in one folder."""
    if output.exists() and not output.is_dir():
        raise UserError("the output is a file", where=str(output), fix="name a folder")
    last = output / "checkpoints" / "last.safetensors"
    if last.exists() and not job.resume:
        raise UserError(
            "the output folder already holds a run",
            where=str(output),
            fix="continue it with --resume, or choose another --output",
        )


def _check_end(trained: FitResult, task: Task, output: Path) -> None:
    """Interrupted runs stop here; so do those whose best is worse than the frozen model."""
    if trained.status == "interrupted":
        raise KeyboardInterrupt(
            f"saved step {trained.step} of {trained.total} in {output}; the same command with "
            "--resume continues"
        )
    if trained.status != "below-zero-shot":
        return
    best, zero_shot = trained.best[task.headline], trained.zero_shot[task.headline]
    if best <= zero_shot:
        raise UserError(
            f"training made the model worse: validation {task.headline} was {zero_shot:.2f} before "
            f"training and at best {best:.2f} after {trained.step} steps",
            where=str(output / "events.jsonl"),
            fix="lower lr by a factor of five, or check that the texts describe the pictures; "
            "guard 0 trains on regardless",
        )


def _save(job: TrainJob, result: RunResult, backbone: HFBackbone) -> None:
    """The product (adapter folder, or backbone folder for a new model) and the results."""
    card = make_card(result.record)
    if job.from_scratch:
        merge(backbone)
        backbones.save_backbone(backbone, result.folder / "backbone")
        for name, text in (("run.json", to_json(result.record)), ("README.md", card)):
            write_file(result.folder / "backbone" / name, text)
    else:
        save_adapter(
            backbone, "default", result.folder, card=card, run=json.loads(to_json(result.record))
        )
    ranks: dict[str, Any] = {
        name: details(measured.result)
        for name, measured in (
            ("before", result.before),
            ("before_resized", result.resized),
            ("after", result.after),
        )
        if measured is not None
    }
    write_file(result.folder / RESULTS_FILE, to_json(ranks))
