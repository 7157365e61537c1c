"""From a finished run or evaluation to its HTML report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.data import DuplicateReport, Unreadable, decode
from crossadapt.evaluation.charts import Curve
from crossadapt.evaluation.examples import Example, choose_examples, retrieve_examples
from crossadapt.evaluation.metrics import metric_label
from crossadapt.evaluation.report import Report, write_report
from crossadapt.training.classifying import Classified
from crossadapt.training.compared import HEADLINE
from crossadapt.training.events import read_events
from crossadapt.training.job import TrainJob
from crossadapt.training.measure import Evaluation
from crossadapt.training.run import Measured, RunResult, versions
from crossadapt.training.splits import ClipView, Split

if TYPE_CHECKING:
    from PIL import Image

REPORT_FILE = "report.html"


def report_run(job: TrainJob, result: RunResult) -> Path:
    """Write ``report.html`` into the run's folder and return its path."""
    record = result.record
    fit = result.fit
    report = Report(
        title=f"{job.method} on {Path(job.data).name or job.data}",
        subtitle=f"backbone {job.backbone}, held-out split {record['held_out'] or 'none'}",
        facts={
            "trained parameters": f"{record['trained']:,}",
            "share of the backbone": f"{record['share']:.2%}",
            "training": f"{fit.seconds:,.0f} s, {fit.step:,} steps",
            "peak memory": f"{fit.peak_memory:,.0f} MiB",
            "ended": fit.status,
            **_resized_fact(result),
            **_probe_fact(result.before, result.after),
            **_class_facts(result),
        },
        curves=_curves(result.folder / "events.jsonl"),
        ledger=[asdict(entry) for entry in result.ledger],
        leakage=_leakage(result.duplicates),
        config=record["job"],
        versions=record["versions"],
    )
    _measured(report, result.held_out, result.before, result.after)
    return write_report(report, result.folder / REPORT_FILE)


def report_evaluation(found: Evaluation, path: Path) -> Path:
    """Write the report of an evaluation to `path`."""
    report = Report(
        title=f"{Path(str(found.facts['data'])).name}, split {found.facts['split']}",
        subtitle=f"backbone {found.facts['backbone']}",
        facts=_probe_fact(found.frozen, found.adapted),
        ledger=[asdict(entry) for entry in found.ledger],
        config=found.facts,
        versions=versions(),
        notes=found.notes,
    )
    if found.adapted is None:
        report.after = found.frozen.result
        report.names = ("Zero-shot", "Zero-shot")
    else:
        _measured(report, found.held_out, found.frozen, found.adapted)
    return write_report(report, path)


def _resized_fact(result: RunResult) -> dict[str, str]:
    """How the frozen model does at the run's picture size, where that is not its own."""
    if result.resized is None:
        return {}
    found = result.resized.result.metric(HEADLINE)
    return {"frozen, at the run's picture size": f"{metric_label(HEADLINE)} {found:.1f}"}


def _class_facts(result: RunResult) -> dict[str, str]:
    """Accuracy and macro-F1 as short facts; nothing when no classes were learned."""
    before, after = result.before, result.after
    if not (isinstance(before, Classified) and isinstance(after, Classified)):
        return {}
    facts = {}
    for name, measured in (("linear probe", before), ("trained", after)):
        found = measured.result
        spans = found.intervals()
        shown = spans["accuracy"].format() if spans else f"{found.accuracy:.1f}"
        facts[f"accuracy, {name}"] = f"{shown} %"
        facts[f"macro-F1, {name}"] = f"{found.macro_f1:.1f} %"
    for name, found in result.record["classification"]["subsets"].items():
        facts[f"trained model with {name}"] = f"{found['trained']:.1f} %"
    return facts


def _measured(
    report: Report,
    split: Split | None,
    before: Measured | Classified | None,
    after: Measured | Classified | None,
) -> None:
    """Results, example queries and their pictures; nothing without a held-out split."""
    if split is None or not (isinstance(before, Measured) and isinstance(after, Measured)):
        return
    report.before, report.after = before.result, after.result
    items = split.manifest.items
    report.examples = _examples(split, before, after)
    clips = split.pixels if isinstance(split.pixels, ClipView) else None
    report.thumbnails = _thumbnails(items) if clips is None else _middle_frames(clips)
    report.image_names = [Path(item).name for item in items]


def _examples(split: Split, before: Measured, after: Measured) -> list[Example]:
    rows = split.manifest
    if before.scores is not None and after.scores is not None:
        everything = np.arange(len(rows.items))
        ranks, scores = [], []
        for measured in (before, after):
            details = measured.result.details or {}
            ranks.append(details["text_to_image"].ranks.average)
            scores.append(partial(_scores_of, measured.scores, everything))
        return choose_examples(
            (ranks[0], ranks[1]), (scores[0], scores[1]), rows.item_groups, rows.groups, rows.texts
        )
    return retrieve_examples(
        (before.images, before.texts),
        (after.images, after.texts),
        rows.item_groups,
        rows.groups,
        rows.texts,
    )


def _scores_of(scores: Any, items: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return scores(rows, items)


def _probe_fact(
    before: Measured | Classified | None, after: Measured | Classified | None
) -> dict[str, str]:
    """The order probe as a short fact; nothing without one."""
    there = {"zero-shot": before, "adapted": after}
    said = [
        f"{name} {measured.probe.format()}"
        for name, measured in there.items()
        if measured is not None and measured.probe is not None
    ]
    return {"order probe (chance 50 %)": ", ".join(said)} if said else {}


def _middle_frames(clips: ClipView) -> Callable[[int], Image.Image]:
    def fetch(row: int) -> Image.Image:
        from PIL import Image

        pixels, mask = clips[row]
        middle = pixels[(int(mask.sum()) - 1) // 2]
        return Image.fromarray(middle.transpose(1, 2, 0).copy())

    return fetch


def _thumbnails(items: Sequence[str]) -> Callable[[int], Image.Image]:
    def fetch(row: int) -> Image.Image:
        try:
            return decode(items[row])
        except Unreadable as error:  # readable while training, and gone since
            raise OSError(str(error)) from error

    return fetch


def _curves(events: Path) -> list[Curve]:
    """Loss and validation recall over steps."""
    if not events.exists():
        return []
    found = read_events(events)
    loss = [(float(e["step"]), float(e["loss"])) for e in found if e["event"] == "step"]
    zero = next((e for e in found if e["event"] == "zero-shot"), {})
    curves = [Curve("Training loss", {"loss": loss}, y_label="loss")] if len(loss) > 1 else []
    names = {
        "t2i_r1": "text → image R@1",
        "i2t_r1": "image → text R@1",
        "accuracy": "accuracy",
        "macro_f1": "macro-F1",
    }
    series = {
        label: [
            (float(e["step"]), float(e[key]))
            for e in found
            if e["event"] in ("zero-shot", "eval") and key in e
        ]
        for key, label in names.items()
    }
    series = {label: points for label, points in series.items() if len(points) > 1}
    if series:
        levels = {f"zero-shot {names[key]}": float(zero[key]) for key in names if key in zero}
        curves.append(Curve("Validation", series, y_label="%", baselines=levels))
    return curves


def _leakage(found: DuplicateReport) -> Mapping[str, Any]:
    """Counts of duplicates over all splits."""
    return {
        "pictures compared": found.items,
        "look-alike pictures of different groups": len(found.pictures),
        "of these across splits": len(found.picture_leaks),
        "texts compared": found.texts,
        "texts used for several groups": len(found.captions),
        "of these texts across splits": len(found.caption_leaks),
    }
