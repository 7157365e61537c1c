"""``crossadapt evaluate``: measure a backbone, frozen or adapted, by a protocol."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from crossadapt.cli.options import parse as parse_options
from crossadapt.cli.output import (
    accuracy,
    before_after,
    json_only,
    order_probe,
    second_stage,
)
from crossadapt.errors import UserError


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure held-out items: the frozen model and, with --adapter, the adapted one.

    Prints recalls and ranks in both directions with 95 % intervals, and the paired test when there
    is an adapter. With --task few-shot, or an adapter that knows classes, the accuracy instead.
    """

    data: str
    """A folder, a table (CSV, JSONL, Parquet), a Karpathy JSON file, or `openmoji`."""
    adapter: Path | None = None
    """Folder that `crossadapt train` wrote."""
    backbone: str | None = None
    """Backbone to measure; the adapter's own, or pico-clip without an adapter."""
    protocol: str = "pairs"
    """Rule of the evaluation: pairs, flickr30k-1k, coco-5k or coco-1k-folds; for classes few-shot
    or base-to-novel."""
    task: Literal["auto", "retrieval", "few-shot"] = "auto"
    """Measure retrieval or classes; what the adapter was made for when `auto`."""
    label: str | None = None
    """Few-shot: column that names the class; the adapter's own, or `label`, when unset."""
    split: str = "test"
    """Rows to measure on; `all` takes every row."""
    reader: str = "auto"
    """How to read the data; found out from the files when `auto`."""
    columns: Mapping[str, str] | None = None
    """Which column is which, as role to name: item, text, group, split."""
    split_seed: int | None = None
    """Seed of the split, for data that bring none; the adapter's own when unset."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the encoders; bf16 where the hardware has it."""
    workers: int | None = None
    """Processes that decode pictures; one per core when unset."""
    cache: Path | None = None
    """Folder of prepared pictures; the user's cache folder when unset."""
    frames: int | None = None
    """Videos: most frames taken of a clip; as the adapter was trained, or 12, when unset."""
    sampling: Literal["segments", "1fps", "starts", "head", "tail"] | None = None
    """Videos: which frames; as the adapter was trained, or segments, when unset."""
    pooling: Literal["mean", "text-conditioned"] | None = None
    """Videos: how frames meet a text; as the adapter was trained, or mean, when unset."""
    rerank: int | None = None
    """Also re-rank the so many nearest of each query with the fusion tower (BLIP backbones)."""
    rerank_weight: float = 0.0
    """Weight of the cosine beside the match logit when re-ranking: 0 as UniAdapter, 1 as BLIP."""
    report: Path | None = None
    """Also write an HTML report to this file."""
    json: bool = False
    """Print one JSON document instead of the table."""


def parse(args: Sequence[str]) -> EvaluateOptions | None:
    """Options, or None when help was printed."""
    return parse_options(EvaluateOptions, args, "evaluate")


def run(options: EvaluateOptions) -> int:
    """Measure and print."""
    from crossadapt.training.few_shot_evaluate import is_class_adapter

    by_adapter = options.task == "auto" and is_class_adapter(options.adapter)
    if options.task == "few-shot" or by_adapter:
        return _classes(options)
    from crossadapt.training.measure import run_evaluation
    from crossadapt.training.reporting import report_evaluation

    own = ("json", "report", "task", "label")
    settings: dict[str, Any] = {k: v for k, v in asdict(options).items() if k not in own}
    with json_only(options.json) as show:
        found = run_evaluation(**settings)
        show(found.to_dict())
        if not options.json:
            frozen = found.frozen.result
            if found.adapted is None:
                before_after(None, frozen, options.split)
            else:
                resized = None if found.resized is None else found.resized.result
                before_after(frozen, found.adapted.result, options.split, resized=resized)
            adapted = found.adapted.probe if found.adapted is not None else None
            for name, part in (("zero-shot", found.frozen), ("adapted", found.adapted)):
                if part is not None and part.reranked is not None:
                    second_stage(name, part.result, part.reranked)
            order_probe({"zero-shot": found.frozen.probe, "adapted": adapted})
        for line in (*found.notes, found.ledger.render()):
            if line:
                print(line, file=sys.stderr)
        if options.report is not None:
            print(f"report: {report_evaluation(found, options.report)}")
    return 0


def _classes(options: EvaluateOptions) -> int:
    """Measure accuracy and print it."""
    from crossadapt.training.few_shot_evaluate import evaluate_classes

    retrieval = ("frames", "sampling", "pooling", "rerank", "rerank_weight", "report")
    for name in retrieval:
        if getattr(options, name):
            raise UserError(f"{name} is for retrieval", where=f"--{name}", fix="leave it out")
    own = ("json", "task", *retrieval)
    settings: dict[str, Any] = {k: v for k, v in asdict(options).items() if k not in own}
    if settings["protocol"] == "pairs":
        settings["protocol"] = "few-shot"
    with json_only(options.json) as show:
        found = evaluate_classes(**settings)
        show(found.to_dict())
        if not options.json:
            if found.adapted is None:
                accuracy(None, found.frozen, options.split)
            else:
                accuracy(found.frozen, found.adapted, options.split)
        for line in (*found.notes, found.ledger.render()):
            if line:
                print(line, file=sys.stderr)
    return 0
