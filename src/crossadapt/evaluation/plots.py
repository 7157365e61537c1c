"""Pictures for places that cannot show HTML: PNG by matplotlib (extra `report`)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from crossadapt.errors import UserError
from crossadapt.evaluation.charts import Point
from crossadapt.evaluation.metrics import metric_label
from crossadapt.evaluation.svg import compact

if TYPE_CHECKING:
    from crossadapt.evaluation.comparison import Comparison

_COLOURS = ("#3550c8", "#c2620a", "#1a7f4e", "#a82c90", "#0a7796", "#80641a", "#c02626", "#5f5b55")
_SHAPES = "os^Dv"
_INK, _SOFT, _RULE = "#1d1c1a", "#625e57", "#e4e0d8"


def require_matplotlib() -> None:
    """Raise `UserError` when matplotlib is missing: ask before a long run, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "drawing a PNG needs matplotlib", fix="pip install 'crossadapt[report]'"
        ) from error


def comparison_png(found: Comparison, *, dpi: int = 160) -> bytes:
    """The plots of a comparison as one PNG: the headline metric against each measured cost."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from crossadapt.evaluation.comparison import COSTS

    drawn = {name: found.points(name) for name in COSTS}
    drawn = {name: d for name, d in drawn.items() if d[0]}
    if not drawn:
        raise UserError(
            "no method has a cost to plot", fix="compare at least one method that trains something"
        )
    figure = Figure(figsize=(4.3 * len(drawn) + 0.4, 4.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    styles = {p.label: i for i, p in enumerate(drawn[next(iter(drawn))][0])}
    for axis, (name, (points, levels)) in zip(axes, drawn.items(), strict=True):
        _draw(axis, points, levels, styles)
        axis.set_xlabel(COSTS[name], color=_SOFT)
    axes[0].set_ylabel(metric_label(found.headline).replace("→", "$\\rightarrow$"), color=_SOFT)
    figure.suptitle(_plain(found.title), x=0.012, ha="left", color=_INK, weight="bold", size=13)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=min(len(labels), 4),
        frameon=False,
        fontsize=9,
    )
    buffer = io.BytesIO()
    # No time stamp in the file: equal numbers give equal bytes.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axis: Any, points: list[Point], levels: dict[str, float], styles: dict[str, int]) -> None:
    axis.set_xscale("log")
    axis.grid(True, color=_RULE, linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(_RULE)
    axis.tick_params(colors=_SOFT, length=0, which="both")
    axis.xaxis.set_major_formatter(lambda value, _: compact(value))
    axis.xaxis.set_minor_formatter(lambda value, _: "")
    low, high = min(p.x for p in points), max(p.x for p in points)
    if high < 10 * low:
        # Less than a decade: label 1, 2 and 5 too, or the axis would carry a single number.
        from matplotlib.ticker import LogLocator

        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_xlim(low / 1.5, high * 1.5)
    for name, level in levels.items():
        axis.axhline(
            level,
            color=_SOFT,
            linestyle=(0, (5, 4)),
            linewidth=1.2,
            label=f"{_plain(name)} ({level:.1f})",
        )
    for p in points:
        i = styles.setdefault(p.label, len(styles))
        bars = None
        if p.low is not None and p.high is not None:
            bars = [[p.y - p.low], [p.high - p.y]]
        axis.errorbar(
            [p.x],
            [p.y],
            yerr=bars,
            fmt=_SHAPES[i % len(_SHAPES)],
            markersize=8,
            color=_COLOURS[i % len(_COLOURS)],
            capsize=4,
            markeredgecolor="white",
            label=_plain(p.label),
        )


def _plain(text: str) -> str:
    """Text without the dollar signs that matplotlib reads as mathematics."""
    return text.replace("$", r"\$")
