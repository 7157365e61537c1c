"""``crossadapt train``: adapt a backbone to data, measure it, and write a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from crossadapt.cli.options import changed, parse_with_method, with_recipe
from crossadapt.cli.output import accuracy, before_after, modalities, order_probe
from crossadapt.training.job import TrainJob

if TYPE_CHECKING:
    from crossadapt.training.run import RunResult

Hidden = tyro.conf.SuppressFixed[Mapping[str, Any]]

# What `--smoke` means for a recipe without a part of its own for it.
SMOKE: Mapping[str, Any] = {"epochs": 1, "guard": 0}


@dataclass(frozen=True)
class TrainOptions(TrainJob):
    """Train an adapter on your pictures and texts, and measure what it gained.

    Writes the adapter, a model card, the run's record, and report.html into --output, and prints
    the scores before and after on held-out items.
    """

    HIDDEN: ClassVar[frozenset[str]] = frozenset({"method_options", "task_options"})
    FLAGS: ClassVar[Mapping[str, str]] = {"recipe_file": "recipe"}

    method_options: Hidden = field(default_factory=dict)
    task_options: Hidden = field(default_factory=dict)
    # Not `recipe`: that is a method of the job.
    recipe_file: Annotated[str | None, tyro.conf.arg(name="recipe")] = None
    """YAML file of these options, or the name of a shipped one; what is typed wins."""
    smoke: bool = False
    """Only see that it runs: one epoch, or what the recipe says under `smoke`."""


def parse(args: Sequence[str]) -> TrainJob | None:
    """The job that the options and the recipe describe, or None when help was printed."""
    typed, hidden = with_recipe(args, TrainOptions, SMOKE)
    parsed = parse_with_method(TrainOptions, typed, "train")
    if parsed is None:
        return None
    options, config = parsed
    values: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(TrainJob)}
    values |= hidden | {"method_options": changed(config)}
    return TrainJob(**values)


def run(job: TrainJob) -> int:
    """Train, write the report, print before and after."""
    from crossadapt.training.few_shot import is_few_shot

    if is_few_shot(job):
        return _few_shot(job)
    from crossadapt.training.reporting import report_run
    from crossadapt.training.run import run_training

    result = run_training(job)
    report = report_run(job, result)
    if not job.quiet:
        if result.after is not None and result.held_out is not None:
            _measured(result, result.held_out.name)
        share = f"{result.record['share']:.2%} of the backbone"
        print(f"{result.record['trained']:,} trained parameters, {share}")
        if result.ledger.entries:
            print(result.ledger.render())
        print(f"saved in {result.folder}")
        print(f"report:  {report}")
    return 0


def _few_shot(job: TrainJob) -> int:
    """Build or train a classifier from a few examples, print its accuracy."""
    from crossadapt.training.few_shot import run_few_shot

    result = run_few_shot(job)
    if not job.quiet:
        accuracy(result.before, result.after, result.record["held_out"])
        few = result.record["few_shot"]
        if "alpha" in few:
            how = "searched on validation" if few["searched"] else "not searched"
            print(f"alpha {few['alpha']:.4g}, beta {few['beta']:.4g} ({how})")
        if few["repeated_classes"]:
            print(
                f"note: {few['repeated_classes']} of {few['classes']} classes have fewer than "
                f"{few['shots']} training pictures; theirs were drawn with replacement"
            )
        print(f"{result.record['trained']:,} trained parameters")
        if result.ledger.entries:
            print(result.ledger.render())
        print(f"saved in {result.folder}")
    return 0


def _measured(result: RunResult, split: str) -> None:
    """Print before and after, of retrieval or of classification."""
    from crossadapt.training.classifying import Classified
    from crossadapt.training.heldout import Measured

    before, after = result.before, result.after
    if isinstance(before, Classified) and isinstance(after, Classified):
        accuracy(before.result, after.result, split, names=("linear probe", "trained"))
        modalities(result.record["classification"]["subsets"])
    elif isinstance(before, Measured) and isinstance(after, Measured):
        resized = None if result.resized is None else result.resized.result
        before_after(before.result, after.result, split, resized=resized)
        order_probe({"zero-shot": before.probe, "adapted": after.probe})
