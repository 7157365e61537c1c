"""``crossadapt compare``: several methods, several seeds, one table and one plot."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from crossadapt.cli.options import HIDDEN_MAPPINGS, last_value, recipe_args, with_recipe
from crossadapt.cli.options import parse as parse_options
from crossadapt.cli.output import json_only, table
from crossadapt.cli.train import SMOKE, Hidden
from crossadapt.errors import UserError
from crossadapt.training.job import TrainJob

if TYPE_CHECKING:
    from crossadapt.training.suites import Part

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

    --suite NAME runs a shipped suite (retrieval: all retrieval methods on pictures and on videos):
    one comparison per part, in a folder of --output each; what is typed wins over the suite.
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
    suite: str | None = None
    """Name of a shipped suite, or a YAML file like one; brings data and methods along."""
    only: tuple[str, ...] = ()
    """Of a suite, these parts only."""
    keep_going: bool = False
    """A method that cannot run, or a run that fails, becomes a row that says so; always in a
    suite."""
    retry_failed: bool = False
    """Train what failed in an earlier call once more."""
    json: bool = False
    """Print one JSON document instead of the table."""


@dataclass(frozen=True)
class SuiteOptions:
    """The comparisons of a suite: each part with its options."""

    parts: Sequence[tuple[Part, CompareOptions]]
    json: bool


def parse(args: Sequence[str]) -> CompareOptions | SuiteOptions | None:
    """Options, typed and from the recipe or suite, or None when help was printed."""
    suite = last_value(args, "--suite")
    if suite is not None and not {"-h", "--help"} & set(args):
        return _parse_suite(suite, args)
    typed, hidden = with_recipe(args, CompareOptions, SMOKE)
    options = parse_options(CompareOptions, typed, "compare")
    if options is not None and options.only:
        raise UserError("--only names parts of a suite", where="only", fix="give --suite")
    return None if options is None else replace(options, **hidden)


def _parse_suite(suite: str, args: Sequence[str]) -> SuiteOptions:
    from crossadapt.training.suites import read_suite

    for flag in ("--recipe", "--methods", "--data"):
        if any(arg.partition("=")[0] == flag for arg in args):
            raise UserError(
                f"a suite brings its own {flag.removeprefix('--')}",
                where=f"crossadapt compare --suite {suite}",
                fix=f"leave {flag} out, or write a suite file and name it",
            )
    only = _typed_only(args)
    parts = []
    for part in read_suite(suite, only):
        recipe = {**part.recipe, **(part.smoke if "--smoke" in args else {})}
        hidden: dict[str, Any] = {k: recipe.pop(k) for k in HIDDEN_MAPPINGS if k in recipe}
        given = [*recipe_args(recipe, CompareOptions, Path(suite)), *args]
        options = parse_options(CompareOptions, given, "compare")
        if options is None:
            raise UserError("the options cannot be read", where=" ".join(args))
        folder = options.output / part.name
        parts.append((part, replace(options, output=folder, keep_going=True, **hidden)))
    return SuiteOptions(parts, "--json" in args)


def _typed_only(args: Sequence[str]) -> list[str]:
    """The values after ``--only``: the parts decide which recipes are read at all."""
    found: list[str] = []
    taking = False
    for arg in args:
        flag, _, value = arg.partition("=")
        if flag.startswith("--"):
            taking = flag == "--only"
            found += [value] if taking and value else []
        elif taking:
            found.append(arg)
    return found


def run(options: CompareOptions | SuiteOptions) -> int:
    """Run what is missing, write the files, print the table or tables."""
    with json_only(options.json) as show:
        if isinstance(options, CompareOptions):
            show(_compare(options))
        else:
            _check_data([each for _, each in options.parts])
            show({part.name: _compare(each, part) for part, each in options.parts})
    return 0


def _check_data(parts: Sequence[CompareOptions]) -> None:
    """Read the data of every part, so that none is found missing after hours of another."""
    from crossadapt.data import Ledger, read_manifest

    for each in parts:
        read_manifest(
            each.data,
            reader=each.reader,
            columns=each.columns,
            split_seed=each.split_seed,
            ledger=Ledger(),
        )


def _compare(options: CompareOptions, part: Part | None = None) -> dict[str, Any]:
    from crossadapt.training.compare import compare

    values: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(TrainJob)}
    marks: dict[str, Any] = {}
    if part is not None:
        marks = {"tuned": part.tuned, "leave_out": part.leave_out}
        print(f"== {part.name}", file=sys.stderr)
    found, paths = compare(
        TrainJob(**values),
        options.methods,
        options.seeds,
        options.output,
        keep_going=options.keep_going,
        retry_failed=options.retry_failed,
        say=lambda line: print(line, file=sys.stderr),
        **marks,
    )
    if not options.json:
        _print(found, paths)
    return found.to_dict()


def _print(found: Any, paths: dict[str, Path]) -> None:
    shown = {
        "t→i R@1": "text_to_image.r1",
        "t→i R@10": "text_to_image.r10",
        "i→t R@1": "image_to_text.r1",
        "order probe": "order_probe",
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
    for failure in found.failures:
        print(f"{failure.method} {failure.text}")
    for note in found.notes:
        print(note)
    for path in paths.values():
        print(f"wrote {path}")
