"""The report of one adaptation: a single HTML file that needs nothing beside it.

Style, charts and pictures are inside the file; it loads nothing, runs no script, follows the
reader's light or dark setting, works with a keyboard and a screen reader, and prints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossadapt.errors import UserError
from crossadapt.evaluation import gallery, sections
from crossadapt.evaluation.charts import Curve
from crossadapt.evaluation.examples import Example
from crossadapt.evaluation.html import Markup, page, tag
from crossadapt.evaluation.metrics import RetrievalResult
from crossadapt.files import write_file

if TYPE_CHECKING:
    from PIL import Image

    Thumbnails = Sequence[Image.Image] | Callable[[int], Image.Image]


@dataclass
class Report:
    """What a report shows. Everything but the title is optional; an empty part is left out."""

    title: str
    subtitle: str = ""
    before: RetrievalResult | None = None
    """The frozen model. With both, intervals and the paired test are computed from the ranks."""
    after: RetrievalResult | None = None
    """The adapted model."""
    names: tuple[str, str] = ("Zero-shot", "Adapted")
    """What to call before and after."""
    headline: str = "text_to_image.r1"
    """The metric shown large; see `metrics.METRIC_NAMES`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Short facts beside the headline, in order: trained parameters, share, time, …"""
    curves: Sequence[Curve] = ()
    examples: Sequence[Example] = ()
    thumbnails: Thumbnails | None = None
    """Pictures by image row: a sequence, or a function of the row that may raise `OSError`."""
    image_names: Sequence[str] | None = None
    """Alternative texts by image row."""
    ledger: Sequence[Mapping[str, Any]] | None = None
    """Inputs that were left out, each with `item`, `reason` and `stage`; [] says there were
    none, None that nobody kept a ledger."""
    leakage: Mapping[str, Any] | None = None
    """The data part's report of duplicates and overlaps between splits."""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """Plain sentences the reader should know."""


def render_report(report: Report) -> str:
    """The whole page as text."""
    if report.after is None and report.before is not None:
        raise UserError(
            "the report has a result before adaptation but none after",
            fix="pass a single result as `after`",
        )
    main: list[Markup | None] = [
        sections.headline(report.before, report.after, report.names, report.headline, report.facts),
        sections.metrics(report.before, report.after, report.names),
        sections.curves(report.curves),
        gallery.gallery(report.examples, report.thumbnails, report.image_names, report.names),
        gallery.failures(report.examples, report.thumbnails, report.image_names, report.names),
        sections.ledger(report.ledger),
        sections.leakage(report.leakage),
        sections.protocol(report.after),
        sections.settings(report.config, report.versions),
    ]
    notes = tag("ul", [tag("li", n) for n in report.notes], class_="notes")
    return page(
        report.title,
        tag(
            "header",
            tag("p", "crossadapt report", class_="brand"),
            tag("h1", report.title),
            tag("p", report.subtitle, class_="subtitle") if report.subtitle else None,
        ),
        tag("main", main),
        tag(
            "footer",
            notes if report.notes else None,
            tag(
                "p",
                "One self-contained file written by crossadapt: it loads nothing from "
                "elsewhere and runs no script.",
            ),
        ),
    )


def write_report(report: Report, path: str | Path) -> Path:
    """Write `report` as one HTML file, whole or not at all, and return its path."""
    return write_file(Path(path), render_report(report))
