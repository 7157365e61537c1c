"""Train several methods with several seeds and put the results side by side.

Each (method, seed) is a run of its own (`crossadapt.training.contender_runs`), so the same command
again trains only what is missing, and changing anything that matters trains anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossadapt import backbones
from crossadapt.adapters.registry import get_method
from crossadapt.data import Ledger, Manifest, read_manifest
from crossadapt.errors import UserError
from crossadapt.evaluation.comparison import Comparison, ComparisonRow, write_comparison
from crossadapt.evaluation.failure import Failure
from crossadapt.evaluation.metrics import metric_label
from crossadapt.evaluation.plots import require_matplotlib
from crossadapt.files import make_folder
from crossadapt.training.classifying import MULTIMODAL_TASK
from crossadapt.training.compared import (
    ZERO_SHOT,
    interval_of,
    metrics_of,
    paired_of,
    probe_note,
    probes,
    result_of,
    zero_shots,
)
from crossadapt.training.contender_runs import (
    RunFailed,
    known_failure,
    raised,
    result_file,
    run_child,
    run_here,
)
from crossadapt.training.few_shot import is_few_shot, resolve_few_shot
from crossadapt.training.few_shot_data import read_few_shot
from crossadapt.training.heldout import VIDEO_TASK, resolve_task, video_config
from crossadapt.training.job import TrainJob
from crossadapt.training.method_strings import (
    SETTINGS,
    TASK_SETTINGS,
    Contender,
    parse_contender,
    sized,
)


def compare(
    base: TrainJob,
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    *,
    keep_going: bool = False,
    retry_failed: bool = False,
    tuned: Sequence[str] | None = None,
    leave_out: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Comparison, dict[str, Path]]:
    """Run what is missing and write `comparison.{json,md,html,png}` into `output`.

    Args:
        base: data, backbone and training settings common to all; its method is not used.
        methods: method strings, see `parse_contender`.
        seeds: each method is trained once with each.
        output: folder of the comparison; finished runs are kept in ``output/runs``.
        keep_going: a setting that cannot run on the backbone, and a run that fails, become rows
            that say so.
        retry_failed: train what failed in an earlier call once more.
        tuned: method strings whose learning rate is not a first guess; None says nothing of it.
        leave_out: methods that do not take part, and why.
        say: told about progress, one line at a time.

    Raises:
        UserError: anything wrong with the methods (found before anything is trained) or, unless
            told to keep going, with a run; no run that finished.
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
    jobs, failures = _jobs(base, contenders, backbone, seeds, keep_going=keep_going)
    for failure in failures:
        say(f"{failure.method}: cannot run: {failure.reason}")
    runs = make_folder(output / "runs")
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for number, (key, job) in enumerate(jobs.items(), 1):
        label, seed = key
        told = f"[{number}/{len(jobs)}] {label}, seed {seed}"
        result = result_file(runs, label, seed, job, identity)
        earlier = None if retry_failed or not keep_going else known_failure(result)
        if result.is_file():
            found[key] = json.loads(result.read_text(encoding="utf-8"))
            say(f"{told}: finished before, kept")
        elif earlier is not None:
            failures.append(Failure(label, earlier, [seed]))
            say(f"{told}: failed before: {earlier}")
            continue
        else:
            say(f"{told}: training")
            try:
                # A cache of features takes seconds, less than a process takes to start.
                run = run_here if get_method(job.method).few_shot else run_child
                found[key] = run(job, result)
            except RunFailed as failure:
                if not keep_going:
                    raise raised(failure, told, result) from failure
                failures.append(Failure(label, failure.reason, [seed]))
                say(f"{told}: failed: {failure.reason}")
                continue
        after = result_of(found[key]["after"])
        name = metrics_of(after)[0]
        score = f"{metric_label(name)} {after.metric(name):.1f}"
        say(f"{told}: {score} in {found[key]['seconds']:,.0f} s")
    if not found:
        raise UserError(
            "no run has finished, so there is nothing to compare",
            where=str(runs),
            fix="see the logs there; --retry-failed trains what failed once more",
        )
    comparison = _comparison(base, contenders, seeds, found)
    marks = {} if tuned is None else {"tuned": list(tuned), "left_out": dict(leave_out or {})}
    comparison = replace(
        comparison, failures=_merged(failures), config={**comparison.config, **marks}
    )
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
    base = resolve_task(base, manifest)
    if base.task == MULTIMODAL_TASK:
        raise UserError(
            "a comparison measures retrieval, and the task multimodal classifies",
            where="task",
            fix="train each setting with crossadapt train; run.json holds its scores",
        )
    return base, manifest


def _jobs(
    base: TrainJob,
    contenders: Sequence[Contender],
    backbone: Any,
    seeds: Sequence[int],
    *,
    keep_going: bool,
) -> tuple[dict[tuple[str, int], TrainJob], list[Failure]]:
    """The jobs by label and seed, and the settings that cannot run at all."""
    jobs, failures = {}, []
    for contender in contenders:
        try:
            ready = sized(contender, backbone)
            jobs |= {(ready.label, seed): _job(base, ready, seed) for seed in seeds}
        except UserError as error:
            if not keep_going:
                raise
            failures.append(Failure(contender.label, str(error).splitlines()[0], list(seeds)))
    return jobs, failures


def _merged(failures: Sequence[Failure]) -> list[Failure]:
    """One entry for each setting and reason."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for failure in failures:
        seeds.setdefault((failure.method, failure.reason), []).extend(failure.seeds)
    return [Failure(method, said, found) for (method, said), found in seeds.items()]


def _job(base: TrainJob, contender: Contender, seed: int) -> TrainJob:
    own = get_method(contender.method).task
    if own is not None and is_few_shot(base):
        raise UserError(
            f"{contender.method} is trained by the task {own}, and this comparison is few-shot",
            where=contender.label,
            fix="compare it with methods of retrieval",
        )
    job = replace(
        base,
        method=contender.method,
        method_options=dict(contender.options),
        seed=seed,
        # A method that loses to zero-shot is a result here, not a mistake to stop for.
        guard=0 if base.guard is None else base.guard,
        task=own or base.task,
        **{k: v for k, v in contender.settings.items() if k not in TASK_SETTINGS},
    )
    for name in ("pooling", *TASK_SETTINGS):
        if name not in contender.settings:
            continue
        if job.task != VIDEO_TASK:
            raise UserError(f"{name} is for videos", where=contender.label, fix="leave it out")
        options = {**job.task_options, name: contender.settings[name]}
        job = replace(job, task_options=options)
        video_config(job)  # refuses a value that does not exist
    job.recipe()  # refuses impossible numbers before anything is trained
    return job


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
    for label, (part, when) in zero_shots(found).items():
        result = result_of(part[when])
        probed = probes([part], when) if when == "before" else {}
        values = {m: [result.metric(m)] for m in metrics} | probed
        rows.append(ComparisonRow(label, values, 0, 0.0))
    if zero.groups > 1:
        interval = interval_of(zero)
        label = metric_label(metrics[0] if "harmonic_mean" not in metrics else "accuracy")
        notes.append(
            f"{ZERO_SHOT}: {label} {interval.format()}, bootstrap over {interval.count:,} groups."
        )
    for contender in contenders:
        parts = [found[key] for seed in seeds if (key := (contender.label, seed)) in found]
        if not parts:
            continue
        results = [result_of(part["after"]) for part in parts]
        rows.append(
            ComparisonRow(
                contender.label,
                {m: [result.metric(m) for result in results] for m in metrics}
                | probes(parts, "after"),
                parts[0]["trained"],
                parts[0]["share"],
                [part["seconds"] for part in parts],
                [part["peak_memory_mb"] for part in parts],
            )
        )
        notes += probe_note(contender.label, parts)
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
            **({"task_options": dict(base.task_options)} if base.task_options else {}),
            "threads": first["threads"],
            "precision": first["precision"],
        },
        versions=first["versions"],
        notes=notes,
    )
