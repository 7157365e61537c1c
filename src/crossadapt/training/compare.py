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
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from crossadapt import backbones
from crossadapt.adapters.registry import get_method, make_config
from crossadapt.adapters.summary import summarise
from crossadapt.backbones.hf import HFBackbone
from crossadapt.data import Ledger, read_manifest
from crossadapt.data.files import make_folder, write_atomically
from crossadapt.errors import UserError, did_you_mean
from crossadapt.evaluation.comparison import Comparison, ComparisonRow, write_comparison
from crossadapt.evaluation.intervals import metric_intervals, paired_test
from crossadapt.evaluation.metrics import RetrievalResult
from crossadapt.evaluation.plots import require_matplotlib
from crossadapt.training.job import TrainJob
from crossadapt.training.run import versions

HEADLINE = "text_to_image.r1"
METRICS = (
    HEADLINE,
    "text_to_image.r5",
    "text_to_image.r10",
    "image_to_text.r1",
    "image_to_text.r5",
    "image_to_text.r10",
    "rsum",
)
ZERO_SHOT = "zero-shot"

# Training settings that a method string may carry beside the method's own options.
SETTINGS = ("lr", "epochs", "batch_size", "weight_decay", "warmup", "optimiser", "preset", "patience")
# Fields of a job that do not decide its numbers.
_FREE = ("output", "resume", "quiet", "workers", "cache", "checkpoint_seconds", "checkpoint_steps")


@dataclass(frozen=True)
class Contender:
    """A method with its options and its own training settings; `label` is what the user wrote."""

    label: str
    method: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    budget: int | None = None


def parse_contender(text: str) -> Contender:
    """Read ``name``, ``name:key=value,key=[a,b]`` or ``peft:name:key=value``.

    A key is an option of the method, one of `SETTINGS`, or (PEFT methods with a rank) ``budget``:
    the number of trained parameters to come nearest to.

    Raises:
        UserError: unknown method or key (the nearest is named), or something that is no pair.
    """
    name, _, rest = text.strip().partition(":")
    if name == "peft":
        kind, _, rest = rest.partition(":")
        name = f"peft:{kind}"
    known = [f.name for f in fields(get_method(name).config_class)]
    extra = [*SETTINGS, *(["budget"] if "r" in known and name.startswith("peft:") else [])]
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    budget = None
    # A comma inside [a,b] belongs to the value.
    for pair in filter(None, re.split(r",(?![^\[]*\])", rest)):
        key, equals, value = (part.strip() for part in pair.partition("="))
        key = key.replace("-", "_")
        if not equals:
            raise UserError(
                f"{pair!r} is not key=value", where=text, fix="write name:key=value,key=value"
            )
        if key in known:
            options[key] = _value(value)
        elif key == "budget" and key in extra:
            budget = _whole(value, text)
        elif key in extra:
            settings[key] = _value(value)
        else:
            raise UserError(
                f"{name} has no option {key!r}",
                where=text,
                fix=did_you_mean(key, [*known, *extra]),
            )
    make_config(name, options)
    return Contender(text.strip(), name, options, settings, budget)


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
    manifest = read_manifest(
        base.data,
        reader=base.reader,
        columns=base.columns,
        split_seed=base.split_seed,
        ledger=Ledger(),
    )
    backbone = backbones.load(base.backbone)
    identity = {"data": manifest.fingerprint, "backbone": backbone.fingerprint}
    jobs = {
        (c.label, seed): _job(base, _sized(c, backbone), seed) for c in contenders for seed in seeds
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
        score = RetrievalResult.from_dict(found[key]["after"]).metric(HEADLINE)
        say(f"{told}: text → image R@1 {score:.1f} in {found[key]['seconds']:,.0f} s")
    comparison = _comparison(base, contenders, seeds, found)
    return comparison, write_comparison(comparison, output)


def _value(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is not a value", fix="write 8, 0.1, true or [a,b]") from error
    if isinstance(value, str):
        # YAML reads 3e-3 (no point) as text, which is what most people write.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _whole(text: str, where: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError as error:
        raise UserError(f"budget={text} is not a whole number", where=where) from error


def _sized(contender: Contender, backbone: HFBackbone) -> Contender:
    """The contender with the rank its budget asks for; its plan is checked on the backbone."""
    if contender.budget is not None:
        from crossadapt.integrations.peft import rank_for_budget

        config = make_config(contender.method, contender.options)
        rank = rank_for_budget(backbone, contender.method, contender.budget, config=config)
        contender = replace(contender, options={**contender.options, "r": rank})
    summarise(backbone, make_config(contender.method, contender.options))
    return contender


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
    job.recipe()  # refuses impossible numbers before anything is trained
    return job


def _result_file(
    runs: Path, label: str, seed: int, job: TrainJob, identity: Mapping[str, str]
) -> Path:
    decides = {k: v for k, v in asdict(job).items() if k not in (*_FREE, "data")}
    # Resolved, so that a changed default of ours is a changed run.
    decides["recipe"] = job.recipe().identity()
    decides["config"] = asdict(make_config(job.method, job.method_options))
    text = json.dumps([decides, identity, versions()["crossadapt"]], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9._=-]+", "-", label).strip("-")
    return runs / f"{slug}-s{seed}-{digest}.json"


def _run(job: TrainJob, result: Path, told: str) -> dict[str, Any]:
    """Train in a child process; its messages go to a log beside the result."""
    folder = result.with_suffix("")
    resume = (folder / "checkpoints" / "last.safetensors").exists()
    settings = {**asdict(job), "output": str(folder), "resume": resume}
    settings["cache"] = str(job.cache) if job.cache is not None else None
    spec, log = result.with_suffix(".job"), result.with_suffix(".log")
    write_atomically(spec, json.dumps(settings, indent=1).encode())
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
    zero = RetrievalResult.from_dict(first["before"])
    rows = [ComparisonRow(ZERO_SHOT, {m: [zero.metric(m)] for m in METRICS}, 0, 0.0)]
    notes = []
    if zero.groups > 1:
        interval = metric_intervals(zero, metrics=[HEADLINE])[HEADLINE]
        notes.append(
            f"{ZERO_SHOT}: text → image R@1 {interval.format()}, bootstrap over "
            f"{interval.count:,} groups."
        )
    for contender in contenders:
        parts = [found[contender.label, seed] for seed in seeds]
        results = [RetrievalResult.from_dict(part["after"]) for part in parts]
        rows.append(
            ComparisonRow(
                contender.label,
                {m: [result.metric(m) for result in results] for m in METRICS},
                parts[0]["trained"],
                parts[0]["share"],
                [part["seconds"] for part in parts],
                [part["peak_memory_mb"] for part in parts],
            )
        )
        if zero.groups > 1:
            tests = [paired_test(zero, result, HEADLINE) for result in results]
            gains = [test.difference for test in tests]
            notes.append(
                f"{contender.label}: gain over zero-shot from {min(gains):+.1f} to "
                f"{max(gains):+.1f} points over seeds; lowest bound of the paired intervals "
                f"{min(test.low for test in tests):+.1f}, largest p {max(t.p_value for t in tests):.4f}."
            )
    return Comparison(
        rows,
        title=f"Methods compared on {Path(base.data).name or base.data}",
        subtitle=f"backbone {base.backbone}, held-out split {first['held_out']}",
        protocol=base.protocol,
        headline=HEADLINE,
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
