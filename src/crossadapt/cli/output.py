"""What commands print: tables for people, one pure JSON document for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossadapt.evaluation.classification import ClassificationResult
    from crossadapt.evaluation.metrics import RetrievalResult
    from crossadapt.evaluation.order_probe import ProbeResult
    from crossadapt.tasks.rerank import Reranked

# The frozen model at a picture size that is not its own.
RESIZED = "zero-shot, resized"


@contextlib.contextmanager
def json_only(wanted: bool) -> Iterator[Callable[[Any], None]]:
    """Keep standard output for the JSON document: everything else goes to standard error.

    Yields the function that prints the document. With `wanted` false it prints nothing and
    standard output stays as it is.
    """
    if not wanted:
        yield lambda _: None
        return
    out = sys.stdout

    def show(document: Any) -> None:
        print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False), file=out)

    with contextlib.redirect_stdout(sys.stderr):
        yield show


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are aligned right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        first = index == 0
        grid.add_column(column, justify="left" if first else "right", no_wrap=not first,
                        overflow="fold")  # fmt: skip
    for row in rows:
        grid.add_row(*row)
    # Wider than any table of ours: the terminal wraps a long line, cut columns would lose numbers.
    Console(file=sys.stdout, highlight=False, width=400).print(grid)


def order_probe(probes: Mapping[str, ProbeResult | None]) -> None:
    """Print the order probe of some models, by name; nothing where there was none."""
    rows = [[name, probe.format()] for name, probe in probes.items() if probe is not None]
    if rows:
        found = next(probe for probe in probes.values() if probe is not None)
        title = f"order probe, {found.pairs:,} pairs of clips that differ in order alone: "
        table(
            f"{title}own caption wins, chance 50",
            ["model", "% right"],
            rows,
        )


def modalities(subsets: Mapping[str, Mapping[str, float]]) -> None:
    """Print the accuracy of the linear probe and the trained model for subsets of modalities."""
    if len(subsets) > 1:
        cells = [[n, f"{s['linear_probe']:.1f}", f"{s['trained']:.1f}"] for n, s in subsets.items()]
        table("accuracy by modalities", ["modalities", "linear probe", "trained"], cells)


def second_stage(name: str, first: RetrievalResult, second: Reranked) -> None:
    """Print shortlist and re-ranked scores of one model, and what re-ranking costs."""
    labels = ("shortlist", "re-ranked")
    print(f"{name}: the {second.rerank.k} nearest of each query re-ranked by the fusion tower")
    before_after(first, second.result, "", labels=labels)
    print(
        f"re-ranking: {second.pairs:,} pairs in {second.seconds:.1f} s, "
        f"{second.ms_per_query:.1f} ms per query"
    )


def before_after(
    before: RetrievalResult | None,
    after: RetrievalResult,
    split: str,
    labels: tuple[str, str] = ("zero-shot", "adapted"),
    resized: RetrievalResult | None = None,
) -> None:
    """Print frozen and adapted scores with 95 % intervals, and what the paired test says.

    With `before` None only one model was measured: its scores are shown as zero-shot. `resized`
    is the frozen model at the adapter's picture size; `before` is then at its own.
    """
    from crossadapt.evaluation.intervals import metric_intervals, paired_tests
    from crossadapt.evaluation.metrics import DIRECTIONS, direction_label

    parts = ("r1", "r5", "r10", "median_rank")
    models = {labels[0]: after} if before is None else {labels[0]: before}
    if resized is not None:
        models[RESIZED] = resized
    if before is not None:
        models[labels[1]] = after
    held_out = f"held-out split {split!r}, " if split else ""
    rows = []
    for direction in DIRECTIONS:
        for name, result in models.items():
            # One group has no interval.
            intervals = metric_intervals(result) if result.groups > 1 else {}
            cells = [
                intervals[key].format() if key in intervals else f"{result.metric(key):.1f}"
                for key in (f"{direction}.{part}" for part in parts)
            ]
            rows.append([direction_label(direction), name, *cells])
    table(
        f"{held_out}protocol {after.protocol}: {after.images:,} pictures, {after.texts:,} texts",
        ["direction", "model", "R@1", "R@5", "R@10", "median rank"],
        rows,
    )
    if before is None or after.groups < 2:
        return
    metrics = [f"{direction}.r1" for direction in DIRECTIONS]
    for name, test in paired_tests(before, after, metrics=metrics).items():
        direction = direction_label(name.partition(".")[0])
        p = "p < 0.001" if test.p_value < 0.001 else f"p = {test.p_value:.3f}"
        print(
            f"{direction} R@1: {test.difference:+.1f} points [{test.low:+.1f}, {test.high:+.1f}], "
            f"paired test over {test.groups:,} groups: {p}"
        )


def accuracy(
    before: ClassificationResult | None,
    after: ClassificationResult,
    split: str,
    names: tuple[str, str] = ("zero-shot", "adapted"),
) -> None:
    """Print metrics of classes with 95 % intervals, and what the paired test says.

    With `before` None only one model was measured, and goes by the first of `names`.
    """
    from crossadapt.evaluation.classification import paired_accuracy
    from crossadapt.evaluation.metrics import metric_label

    models = [after] if before is None else [before, after]
    rows = []
    for name, result in zip(names, models, strict=False):
        spans = result.intervals()
        cells = [
            spans[metric].format() if metric in spans else f"{result.metric(metric):.1f}"
            for metric in result.metrics
        ]
        rows.append([name, *cells])
    table(
        f"held-out split {split!r}, protocol {after.protocol}: {len(after):,} items, "
        f"{len(after.classes):,} classes",
        ["model", *map(metric_label, after.metrics)],
        rows,
    )
    if before is None or after.groups < 2:
        return
    test = paired_accuracy(before, after)
    p = "p < 0.001" if test.p_value < 0.001 else f"p = {test.p_value:.3f}"
    print(
        f"accuracy: {test.difference:+.1f} points [{test.low:+.1f}, {test.high:+.1f}], "
        f"paired test over {test.groups:,} groups: {p}"
    )
