"""Several methods side by side: one table, three plots, in HTML, Markdown, JSON and PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crossadapt.errors import UserError, did_you_mean
from crossadapt.evaluation import sections
from crossadapt.evaluation.charts import CARD, WIDE, Point, scatter_chart
from crossadapt.evaluation.failure import Failure
from crossadapt.evaluation.html import Markup, join, page, section, table, tag
from crossadapt.evaluation.intervals import Interval, seed_interval
from crossadapt.evaluation.metrics import EXTRA_METRICS, METRIC_NAMES, metric_label
from crossadapt.evaluation.protocols import get_protocol
from crossadapt.evaluation.svg import compact
from crossadapt.files import write_file

COSTS = {
    "trained": "trained parameters",
    "seconds": "seconds of training",
    "peak_memory_mb": "peak memory, MB",
}
"""Horizontal axes of the plots."""


@dataclass(frozen=True)
class ComparisonRow:
    """One method: its metrics and costs, a value per seed each.

    A row with `trained` 0 is a reference (zero-shot): its score is drawn as a level, not a point.
    """

    method: str
    metrics: Mapping[str, Sequence[float]]
    """By names of `METRIC_NAMES`; one value per seed."""
    trained: int
    share: float
    """Trained parameters over the backbone's, from 0 to 1."""
    seconds: Sequence[float] = ()
    peak_memory_mb: Sequence[float] = ()

    def interval(self, metric: str) -> Interval:
        """Mean over seeds with its t interval."""
        return seed_interval(self.metrics[metric])

    def cost(self, name: str) -> float | None:
        """Mean of one of `COSTS`, None when it was not measured."""
        values = getattr(self, name)
        if isinstance(values, int):
            return float(values)
        return sum(values) / len(values) if len(values) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: all values and, for metrics and costs, the interval over seeds."""
        record: dict[str, Any] = {
            "method": self.method,
            "trained": self.trained,
            "share": self.share,
            "metrics": {},
        }
        for name, values in self.metrics.items():
            record["metrics"][name] = _values(values)
        for name in ("seconds", "peak_memory_mb"):
            values = getattr(self, name)
            record[name] = _values(values) if len(values) else None
        return record


@dataclass(frozen=True)
class Comparison:
    """Rows measured under one protocol, and what to say about them."""

    rows: Sequence[ComparisonRow]
    title: str = "Methods compared"
    subtitle: str = ""
    protocol: str = "pairs"
    headline: str = "text_to_image.r1"
    """The metric on the vertical axis."""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    failures: Sequence[Failure] = ()

    def __post_init__(self) -> None:
        get_protocol(self.protocol)
        if not self.rows:
            raise UserError("nothing to compare", fix="name at least one method")
        names = list(self.rows[0].metrics)
        for row in self.rows:
            unknown = [n for n in row.metrics if n not in (*METRIC_NAMES, *EXTRA_METRICS)]
            if unknown:
                raise UserError(
                    f"unknown metric {unknown[0]!r}",
                    where=row.method,
                    fix=did_you_mean(unknown[0], METRIC_NAMES),
                )
            if list(row.metrics) != names or self.headline not in row.metrics:
                raise UserError(
                    "the methods were not measured by the same metrics",
                    where=f"{row.method}: {', '.join(row.metrics) or 'none'}",
                    fix=f"give every row the same ones, with {self.headline}",
                )
            counts = {len(v) for v in row.metrics.values()}
            if counts == {0} or len(counts) > 1:
                raise UserError(
                    "every metric needs one value per seed",
                    where=row.method,
                    fix="pass equally long, non-empty lists",
                )
        methods = [r.method for r in self.rows]
        if len(set(methods)) < len(methods):
            raise UserError(
                "two rows have the same name",
                where=", ".join(methods),
                fix="name each setting, as in 'lora r=8'",
            )

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, headline first."""
        rest = [n for n in self.rows[0].metrics if n != self.headline]
        return [self.headline, *rest]

    def points(self, cost: str) -> tuple[list[Point], dict[str, float]]:
        """(points of the plot against `cost`, levels of the reference rows)."""
        points, levels = [], {}
        for row in self.rows:
            found, x = row.interval(self.headline), row.cost(cost)
            if not row.trained:
                levels[row.method] = found.estimate
            elif x is not None:
                points.append(Point(row.method, x, found.estimate, found.low, found.high))
        return points, levels

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "title": self.title,
            "protocol": self.protocol,
            "headline": self.headline,
            "rows": [r.to_dict() for r in self.rows],
            "config": dict(self.config),
            "versions": dict(self.versions),
            "notes": list(self.notes),
            "failures": [asdict(failure) for failure in self.failures],
        }


def write_comparison(
    rows: Comparison | Sequence[ComparisonRow], folder: str | Path, **options: Any
) -> dict[str, Path]:
    """Write `comparison.json`, `.md`, `.html` and `.png` into `folder`; paths by suffix.

    Args:
        rows: a `Comparison`, or its rows with its other fields as `options`.
        folder: made if missing.
        **options: fields of `Comparison`.

    Raises:
        UserError: inconsistent rows, or matplotlib is missing: then all but the PNG are written.
    """
    found = rows if isinstance(rows, Comparison) else Comparison(rows, **options)
    folder = Path(folder)
    record = json.dumps(found.to_dict(), indent=2, default=str) + "\n"
    paths = {
        "json": write_file(folder / "comparison.json", record),
        "md": write_file(folder / "comparison.md", to_markdown(found)),
        "html": write_file(folder / "comparison.html", to_html(found)),
    }
    from crossadapt.evaluation.plots import comparison_png

    paths["png"] = write_file(folder / "comparison.png", comparison_png(found))
    return paths


def to_markdown(found: Comparison) -> str:
    """A table for a README or a docs page; protocol and number of seeds beneath it."""
    header, rows = _cells(found)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", r"\|").replace("\n", " ") for c in cells) + " |"

    rule = "|---|" + "---:|" * (len(header) - 1)
    lines = [line(header), rule, *(line(r) for r in rows), "", _caption(found)]
    return "\n".join([*lines, *(f"\n{n}" for n in found.notes)]) + "\n"


def to_html(found: Comparison) -> str:
    """The whole page as text."""
    header, rows = _cells(found)
    best = max(
        range(len(found.rows)), key=lambda i: found.rows[i].interval(found.headline).estimate
    )
    body: list[list[Markup | str]] = []
    for i, row in enumerate(rows):
        cells: list[Markup | str] = []
        for j, cell in enumerate(row):
            value, _, bracket = cell.partition(" [")
            number = tag("b", value) if (i, j) == (best, 1) else value
            cells.append(join(number, tag("small", f"[{bracket}") if bracket else None))
        body.append(cells)
    label = metric_label(found.headline)
    drawn = {cost: found.points(cost) for cost in COSTS}
    plots = [
        scatter_chart(f"{label} against {COSTS[cost]}", points, COSTS[cost], label, levels, size)
        for (cost, (points, levels)), size in zip(
            drawn.items(), [(WIDE, 380), CARD, CARD], strict=True
        )
        if points
    ]
    return page(
        found.title,
        tag(
            "header",
            tag("p", "crossadapt comparison", class_="brand"),
            tag("h1", found.title),
            tag("p", found.subtitle, class_="subtitle") if found.subtitle else None,
        ),
        tag(
            "main",
            section("Results", table(header, body, caption=_caption(found))),
            section(
                "Quality against cost",
                plots[0],
                tag("div", plots[1:], class_="charts"),
                lead="Up is better, left is cheaper; whiskers are 95 % intervals over seeds.",
            )
            if plots
            else None,
            section(
                "Protocol",
                tag(
                    "p", tag("code", found.protocol), " — ", get_protocol(found.protocol).definition
                ),
            ),
            sections.settings(found.config, found.versions),
        ),
        tag(
            "footer",
            tag("ul", [tag("li", n) for n in found.notes], class_="notes") if found.notes else None,
            tag("p", "One self-contained file written by crossadapt."),
        ),
    )


def _cells(found: Comparison) -> tuple[list[str], list[list[str]]]:
    header = [
        "Method",
        *map(metric_label, found.metrics),
        "Trained",
        "Share",
        "Seconds",
        "Peak memory",
    ]
    rows = []
    for row in found.rows:
        seconds, memory = row.cost("seconds"), row.cost("peak_memory_mb")
        rows.append(
            [
                row.method,
                *(row.interval(m).format() for m in found.metrics),
                compact(row.trained),
                f"{100 * row.share:.3g} %",
                "—" if seconds is None else f"{seconds:,.0f}",
                "—" if memory is None else f"{memory:,.0f} MB",
            ]
        )
    # A method with results for other seeds has its row; the rest of it is said in the same words.
    blank = ["—"] * (len(header) - 2)
    rows += [[failure.method, failure.text, *blank] for failure in found.failures]
    return header, rows


def _caption(found: Comparison) -> str:
    counts = sorted({len(r.metrics[found.headline]) for r in found.rows if r.trained} or {1})
    if counts == [1]:
        return f"Protocol {found.protocol}; one seed, so no interval."
    seeds = " to ".join(str(c) for c in {counts[0]: 0, counts[-1]: 0})
    return (
        f"Protocol {found.protocol}; mean over {seeds} seeds, in brackets the 95 % t interval; "
        "seconds and memory are means."
    )


def _values(values: Sequence[float]) -> dict[str, Any]:
    return {"values": [float(v) for v in values], **seed_interval(values).to_dict()}
