"""Train several methods with several seeds and put the results side by side.

Each (method, seed) runs in a fresh child process (`crossadapt.training.contender`). A finished run
is a JSON file named by the hash of everything that decides its numbers, so the same command again
trains only what is missing, and changing anything that matters trains anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crossadapt import backbones
from crossadapt.adapters.registry import get_method, make_config
from crossadapt.data import Ledger, Manifest, read_manifest
from crossadapt.errors import UserError
from crossadapt.evaluation.comparison import Comparison, ComparisonRow, write_comparison
from crossadapt.evaluation.metrics import metric_label
from crossadapt.evaluation.order_probe import ORDER_PROBE, ProbeResult
from crossadapt.evaluation.plots import require_matplotlib
from crossadapt.files import make_folder, write_file
from crossadapt.training.compared import interval_of, metrics_of, paired_of, result_of
from crossadapt.training.contender import measure_classes
from crossadapt.training.few_shot import is_few_shot, resolve_few_shot
from crossadapt.training.few_shot_data import read_few_shot
from crossadapt.training.heldout import VIDEO_TASK, resolve_task, video_config
from crossadapt.training.job import TrainJob
from crossadapt.training.method_strings import SETTINGS, Contender, parse_contender, sized
from crossadapt.training.run import versions

ZERO_SHOT = "zero-shot"

# Fields of a job that do not decide its numbers.
_CLIPS = ("frames", "sampling", "pooling", "shots", "label")
_FREE = ("output", "resume", "quiet", "workers", "cache", "checkpoint_seconds", "checkpoint_steps")


def compare(
    base: TrainJob,
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    *,
    say: Callable[[str], None] = print,
) -> tuple[Comparison, dict[str, Path]]:
    """Run what is missing and write `comparison.{json,md,html,png}` into `output`.

    Args:
        base: data, backbone and training settings common to all; its method is not used.
        methods: method strings, see `parse_contender`.
        seeds: each method is trained once with each.
        output: folder of the comparison; finished runs are kept in ``output/runs``.
        say: told about progress, one line at a time.

    Raises:
        UserError: anything wrong with the methods (found before anything is trained) or a run.
        KeyboardInterrupt: stopped; finished runs are kept.
    """
    require_matplotlib()
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("name each seed once, and at least one", where="seeds", fix="0 1 2")
    if len(set(methods)) < len(methods):
        raise UserError("a method is named twice", where="methods", fix="name each setting once")
    contenders = [parse_contender(text) for text in methods]
    base, manifest = _read(base, contenders)
    backbone = backbones.load(base.backbone)
    identity = {"data": manifest.fingerprint, "backbone": backbone.fingerprint}
    jobs = {
        (c.label, seed): _job(base, sized(c, backbone), seed) for c in contenders for seed in seeds
    }
    runs = make_folder(output / "runs")
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for number, (key, job) in enumerate(jobs.items(), 1):
        label, seed = key
        told = f"[{number}/{len(jobs)}] {label}, seed {seed}"
        result = _result_file(runs, label, seed, job, identity)
        if result.is_file():
            found[key] = json.loads(result.read_text(encoding="utf-8"))
            say(f"{told}: finished before, kept")
        else:
            say(f"{told}: training")
            found[key] = _run(job, result, told)
        after = result_of(found[key]["after"])
        name = metrics_of(after)[0]
        score = f"{metric_label(name)} {after.metric(name):.1f}"
        say(f"{told}: {score} in {found[key]['seconds']:,.0f} s")
    comparison = _comparison(base, contenders, seeds, found)
    return comparison, write_comparison(comparison, output)


def _read(base: TrainJob, contenders: Sequence[Contender]) -> tuple[TrainJob, Manifest]:
    """The common job with its task in place, and the data."""
    if any(is_few_shot(replace(base, method=c.method)) for c in contenders):
        manifest = read_few_shot(base, Ledger())
        base = replace(base, task="few-shot")
        return replace(base, protocol=resolve_few_shot(base, manifest)[0].protocol), manifest
    manifest = read_manifest(
        base.data,
        reader=base.reader,
        columns=base.columns,
        split_seed=base.split_seed,
        ledger=Ledger(),
    )
    return resolve_task(base, manifest), manifest


def _job(base: TrainJob, contender: Contender, seed: int) -> TrainJob:
    job = replace(
        base,
        method=contender.method,
        method_options=dict(contender.options),
        seed=seed,
        # A method that loses to zero-shot is a result here, not a mistake to stop for.
        guard=0 if base.guard is None else base.guard,
        **contender.settings,
    )
    if "pooling" in contender.settings:
        if job.task != VIDEO_TASK:
            raise UserError("pooling is for videos", where=contender.label, fix="leave it out")
        job = replace(job, task_options={**job.task_options, "pooling": job.pooling})
        video_config(job)  # refuses a pooling that does not exist
    job.recipe()  # refuses impossible numbers before anything is trained
    return job


def _result_file(
    runs: Path, label: str, seed: int, job: TrainJob, identity: Mapping[str, str]
) -> Path:
    decides = {k: v for k, v in asdict(job).items() if k not in (*_FREE, "data")}
    # Pictures have no clip settings and retrieval no shots: a run is the same without these fields.
    decides = {k: v for k, v in decides.items() if k not in _CLIPS or v is not None}
    # Resolved, so that a changed default of ours is a changed run.
    decides["recipe"] = job.recipe().identity()
    decides["config"] = asdict(make_config(job.method, job.method_options))
    text = json.dumps([decides, identity, versions()["crossadapt"]], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9._=-]+", "-", label).strip("-")
    return runs / f"{slug}-s{seed}-{digest}.json"


def _run(job: TrainJob, result: Path, told: str) -> dict[str, Any]:
    """Train in a child process; its messages go to a log beside the result.

    A cache of features is built or trained in seconds, less than a process takes to start, and
    runs here.
    """
    folder = result.with_suffix("")
    resume = (folder / "checkpoints" / "last.safetensors").exists()
    if get_method(job.method).few_shot:
        found = measure_classes(replace(job, output=folder, resume=resume, quiet=True))
        write_file(result, json.dumps(found, indent=1) + "\n")
        return found
    settings = {**asdict(job), "output": str(folder), "resume": resume}
    settings["cache"] = str(job.cache) if job.cache is not None else None
    spec, log = result.with_suffix(".job"), result.with_suffix(".log")
    write_file(spec, json.dumps(settings, indent=1))
    with log.open("w", encoding="utf-8") as messages:
        child = subprocess.run(
            [sys.executable, "-m", "crossadapt.training.contender", str(spec), str(result)],
            stdout=messages,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    if child.returncode == 130:
        raise KeyboardInterrupt("finished runs are kept; the same command goes on")
    if child.returncode != 0 or not result.is_file():
        said = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise UserError(
            f"{told} failed (code {child.returncode}):\n" + "\n".join(said[-6:]),
            where=str(log),
            fix="finished runs are kept; correct the cause and give the same command again",
        )
    return json.loads(result.read_text(encoding="utf-8"))


def _comparison(
    base: TrainJob,
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
) -> Comparison:
    first = next(iter(found.values()))
    zero = result_of(first["before"])
    metrics = metrics_of(zero)
    rows, notes = [], []
    # Another similarity head makes another frozen model: each has its own row.
    for label, part in _zero_shots(found).items():
        result = result_of(part["before"])
        values = {m: [result.metric(m)] for m in metrics} | _probes([part], "before")
        rows.append(ComparisonRow(label, values, 0, 0.0))
    if zero.groups > 1:
        interval = interval_of(zero)
        label = metric_label(metrics[0] if "harmonic_mean" not in metrics else "accuracy")
        notes.append(
            f"{ZERO_SHOT}: {label} {interval.format()}, bootstrap over {interval.count:,} groups."
        )
    for contender in contenders:
        parts = [found[contender.label, seed] for seed in seeds]
        results = [result_of(part["after"]) for part in parts]
        rows.append(
            ComparisonRow(
                contender.label,
                {m: [result.metric(m) for result in results] for m in metrics}
                | _probes(parts, "after"),
                parts[0]["trained"],
                parts[0]["share"],
                [part["seconds"] for part in parts],
                [part["peak_memory_mb"] for part in parts],
            )
        )
        notes += _probe_note(contender.label, parts)
        zero = result_of(parts[0]["before"])
        if zero.groups > 1:
            tests = [paired_of(zero, result) for result in results]
            gains = [test.difference for test in tests]
            low, p = min(test.low for test in tests), max(test.p_value for test in tests)
            notes.append(
                f"{contender.label}: gain over zero-shot from {min(gains):+.1f} to "
                f"{max(gains):+.1f} points over seeds; lowest bound of the paired intervals "
                f"{low:+.1f}, largest p {p:.4f}."
            )
    return Comparison(
        rows,
        title=f"Methods compared on {Path(base.data).name or base.data}",
        subtitle=f"backbone {base.backbone}, held-out split {first['held_out']}",
        protocol=base.protocol,
        headline=metrics[0],
        config={
            "data": base.data,
            "backbone": base.backbone,
            "seeds": list(seeds),
            "methods": [contender.label for contender in contenders],
            "settings": {
                name: getattr(base, name) for name in SETTINGS if getattr(base, name) is not None
            },
            "threads": first["threads"],
            "precision": first["precision"],
        },
        versions=first["versions"],
        notes=notes,
    )


def _zero_shots(
    found: Mapping[tuple[str, int], Mapping[str, Any]],
) -> dict[str, Mapping[str, Any]]:
    """One run for each way in which the frozen model was measured, by the name of its row."""
    by_head: dict[str, Mapping[str, Any]] = {}
    for part in found.values():
        by_head.setdefault(part["before"].get("similarity", "cosine"), part)
    if len(by_head) == 1:
        return {ZERO_SHOT: next(iter(by_head.values()))}
    names = {"cosine": "mean pooling"}
    return {f"{ZERO_SHOT}, {names.get(h, h)}": part for h, part in by_head.items()}


def _probes(parts: Sequence[Mapping[str, Any]], when: str) -> dict[str, list[float]]:
    """The order probe as a metric, a value per run; nothing where there was none."""
    if any(part.get("order_probe") is None for part in parts):
        return {}
    return {ORDER_PROBE: [part["order_probe"][when]["accuracy"] for part in parts]}


def _probe_note(label: str, parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The interval over pairs of the order probe in each run."""
    if any(part.get("order_probe") is None for part in parts):
        return []
    found = [ProbeResult.from_dict(part["order_probe"]["after"]) for part in parts]
    said = ", ".join(probe.format() for probe in found)
    return [f"{label}: order probe {said}, bootstrap over {found[0].pairs} pairs; chance is 50."]
