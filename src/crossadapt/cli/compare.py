"""``crossadapt compare``: several methods, several seeds, one table and one plot."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from crossadapt.cli.options import parse as parse_options
from crossadapt.cli.options import with_recipe
from crossadapt.cli.output import json_only, table
from crossadapt.cli.train import SMOKE, Hidden
from crossadapt.training.job import TrainJob

# Decided per run, or not by the user.
_PER_RUN = ("method", "method_options", "task_options", "seed", "resume", "quiet")


@dataclass(frozen=True)
class CompareOptions(TrainJob):
    """Train several methods with several seeds and put them side by side.

    Every (method, seed) runs in a process of its own, so that seconds and peak memory are its own.
    Finished runs in --output are kept: the same command again trains only what is missing. Writes
    comparison.json, .md, .html and .png.

    A method may carry options and training settings: cross-modal-adapter:d_s=0,
    peft:lora:budget=94000 (the rank that trains nearest to so many parameters), full:lr=1e-5.
    """

    HIDDEN: ClassVar[frozenset[str]] = frozenset(_PER_RUN)
    FLAGS: ClassVar[Mapping[str, str]] = {"recipe_file": "recipe"}

    method: tyro.conf.SuppressFixed[str] = "cross-modal-adapter"
    method_options: Hidden = field(default_factory=dict)
    task_options: Hidden = field(default_factory=dict)
    seed: tyro.conf.SuppressFixed[int] = 0
    resume: tyro.conf.SuppressFixed[bool] = False
    quiet: tyro.conf.SuppressFixed[bool] = False
    output: Path = Path("runs/compare")
    """Folder of the comparison and of its runs."""
    methods: tuple[str, ...] = ("cross-modal-adapter", "projection")
    """Methods, each with options if you like: name:key=value,key=value."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every method is trained once with each."""
    recipe_file: Annotated[str | None, tyro.conf.arg(name="recipe")] = None
    """YAML file of these options, or the name of a shipped one; what is typed wins."""
    smoke: bool = False
    """Only see that it runs: one epoch each."""
    json: bool = False
    """Print one JSON document instead of the table."""


def parse(args: Sequence[str]) -> CompareOptions | None:
    """Options, typed and from the recipe, or None when help was printed."""
    typed, hidden = with_recipe(args, CompareOptions, SMOKE)
    options = parse_options(CompareOptions, typed, "compare")
    return None if options is None else replace(options, **hidden)


def run(options: CompareOptions) -> int:
    """Run what is missing, write the files, print the table."""
    from crossadapt.training.compare import compare

    values: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(TrainJob)}
    with json_only(options.json) as show:
        found, paths = compare(
            TrainJob(**values),
            options.methods,
            options.seeds,
            options.output,
            say=lambda line: print(line, file=sys.stderr),
        )
        show(found.to_dict())
        if not options.json:
            _print(found, paths)
    return 0


def _print(found: Any, paths: dict[str, Path]) -> None:
    shown = {
        "t→i R@1": "text_to_image.r1",
        "t→i R@10": "text_to_image.r10",
        "i→t R@1": "image_to_text.r1",
        "order probe": "order_probe",
        "accuracy": "accuracy",
        "class accuracy": "class_accuracy",
        "base": "base",
        "novel": "novel",
        "harmonic mean": "harmonic_mean",
    }
    shown = {label: name for label, name in shown.items() if name in found.metrics}
    rows = []
    for row in found.rows:
        costs = [row.cost("seconds"), row.cost("peak_memory_mb")]
        rows.append(
            [
                row.method,
                *(row.interval(metric).format() for metric in shown.values()),
                f"{row.trained:,}",
                f"{row.share:.2%}",
                *("" if cost is None else f"{cost:,.0f}" for cost in costs),
            ]
        )
    table(
        f"{found.title}, protocol {found.protocol}; mean over seeds [95 % t interval]",
        ["method", *shown, "trained", "share", "seconds", "MiB"],
        rows,
    )
    for note in found.notes:
        print(note)
    for path in paths.values():
        print(f"wrote {path}")
