"""Three small charts as inline SVG: lines, points over a cost, and before/after intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossadapt.evaluation.html import Markup, tag
from crossadapt.evaluation.svg import (
    DASHES,
    SERIES,
    Frame,
    compact,
    figure,
    key,
    line,
    log_ticks,
    marker,
    text,
    ticks,
    whisker,
)

CARD = (500, 280)
"""Pixels of a chart that shares its row with another."""
WIDE = 960
"""Pixels across of a chart with a row of its own."""


@dataclass(frozen=True)
class Curve:
    """A line chart: `series` maps a name to its (x, y) points; `baselines` to dashed levels."""

    title: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str = "step"
    y_label: str = ""
    baselines: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart; `low` and `high` draw its interval."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Span:
    """One row of an interval chart: the same metric before and after, as (value, low, high)."""

    label: str
    before: tuple[float, float | None, float | None] | None
    after: tuple[float, float | None, float | None]


def line_chart(curve: Curve, size: tuple[int, int] = CARD) -> Markup:
    """Lines over a linear axis; a value that is not finite breaks its line."""
    points = [p for s in curve.series.values() for p in s if all(map(math.isfinite, p))]
    levels = dict(curve.baselines or {})
    if not points:
        return tag("p", f"{curve.title}: no values were recorded.", class_="muted")
    ys = [y for _, y in points] + list(levels.values())
    xs = ticks(min(x for x, _ in points), max(x for x, _ in points))
    frame = Frame(
        xs,
        ticks(min(ys), max(ys)),
        size,
        x_range=(min(p[0] for p in points), max(p[0] for p in points)),
    )
    parts: list[Markup] = [frame.grid(curve.x_label, curve.y_label)]
    for level in levels.values():
        y = frame.y(level)
        parts.append(line(frame.left, y, frame.right, y, class_="baseline"))
    words: list[str] = []
    for i, (name, values) in enumerate(curve.series.items()):
        path, pen = [], "M"
        for x, y in values:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            path.append(f"{pen}{frame.x(x):.1f},{frame.y(y):.1f}")
            pen = "L"
        parts.append(
            tag(
                "path",
                d=" ".join(path),
                class_=f"line c{i % SERIES}",
                stroke_dasharray=DASHES[i // 2 % 4],
            )
        )
        seen = [(x, y) for x, y in values if math.isfinite(x) and math.isfinite(y)]
        if seen:
            words.append(f"{name} from {seen[0][1]:.4g} to {seen[-1][1]:.4g}")
        if len(seen) == 1:
            parts.append(marker(0, frame.x(seen[0][0]), frame.y(seen[0][1]), i))
    legend = [key(i, name) for i, name in enumerate(curve.series)]
    legend += [tag("span", tag("i", class_="dash"), f"{n} ({v:.4g})") for n, v in levels.items()]
    return figure(curve.title, parts, size, legend, "; ".join(words))


def scatter_chart(
    title: str,
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    baselines: Mapping[str, float] | None = None,
    size: tuple[int, int] = CARD,
) -> Markup:
    """Points with intervals over a logarithmic axis; points without a positive x are left out."""
    shown = [p for p in points if p.x > 0 and math.isfinite(p.x) and math.isfinite(p.y)]
    levels = dict(baselines or {})
    if not shown:
        return tag("p", f"{title}: no method has a value to draw.", class_="muted")
    ys = [v for p in shown for v in (p.y, p.low, p.high) if v is not None] + list(levels.values())
    low, high = min(p.x for p in shown), max(p.x for p in shown)
    # Room on both sides in proportion to what the points span.
    room = max(1.15, (high / low) ** 0.08)
    low, high = low / room, high * room
    frame = Frame(
        log_ticks(low, high), ticks(min(ys), max(ys)), size, log=True, x_range=(low, high)
    )
    parts: list[Markup] = [frame.grid(x_label, y_label)]
    for name, level in levels.items():
        y = frame.y(level)
        parts += [
            line(frame.left, y, frame.right, y, class_="baseline"),
            text(frame.right - 4, y - 6, f"{name} {level:.1f}", "end"),
        ]
    marks: list[Markup] = []
    for i, p in enumerate(points):
        if p not in shown:
            continue
        x = frame.x(p.x)
        if p.low is not None and p.high is not None:
            parts.append(
                tag(
                    "path",
                    class_=f"whisker c{i % SERIES}",
                    d=whisker(x, frame.y(p.low), frame.y(p.high)),
                )
            )
        marks.append(marker(i, x, frame.y(p.y), i, tip=f"{p.label}: {p.y:.1f} at {compact(p.x)}"))
    keys = [key(i, p.label, i) for i, p in enumerate(points)]
    words = "; ".join(f"{p.label}: {p.y:.1f} at {compact(p.x)}" for p in shown)
    return figure(title, parts + marks, size, keys, words)


def interval_chart(title: str, spans: Sequence[Span], names: tuple[str, str]) -> Markup:
    """A row per metric (percent): before as a ring, after as a dot, whiskers for the intervals."""
    every = [v for s in spans for t in (s.before, s.after) if t for v in t if v is not None]
    size = (WIDE, 44 * len(spans) + 46)
    marks = ticks(0, min(100.0, max(every) * 1.02) or 1.0)
    frame = Frame(marks, [0, 1], size, left=160, top=8)
    parts: list[Markup] = [frame.vertical("percent")]
    for row, span in enumerate(spans):
        y = 30.0 + 44 * row
        parts.append(text(frame.left - 14, y + 4, span.label, "end", "label"))
        if span.before:
            a, b = frame.x(span.before[0]), frame.x(span.after[0])
            parts.append(line(a, y, b, y, class_="move"))
        for values, kind, up in ((span.before, "before", -1), (span.after, "after", 1)):
            if not values:
                continue
            value, low, high = values
            if low is not None and high is not None:
                x, z = frame.x(low), frame.x(high)
                parts.append(line(x, y, z, y, class_=f"band {kind}"))
            parts.append(tag("circle", cx=f"{frame.x(value):.1f}", cy=y, r=6, class_=kind))
            side = up if not span.before or span.after[0] >= span.before[0] else -up
            edge = (high if side > 0 else low) if low is not None else value
            at = frame.x(edge if edge is not None else value) + side * 11
            parts.append(text(at, y + 4, f"{value:.1f}", "start" if side > 0 else "end", kind))
    used = [
        (n, k)
        for n, k in zip(names, ("before", "after"), strict=True)
        if k == "after" or any(s.before for s in spans)
    ]
    keys = [tag("span", tag("i", class_=k), n) for n, k in used]
    return figure(title, parts, size, keys, "The table that follows holds the same numbers.")
