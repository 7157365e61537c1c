"""Drawing parts of inline SVG charts: a frame with axes, marks, legends.

Colours come from the page's style through the classes ``c0`` … ``c7``, so dark mode works; shapes
and dashes differ too, so colour is never alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crossadapt.evaluation.html import Markup, join, tag

SERIES = 8
"""Colours in the page's style; more series start over."""
DASHES = (None, "7 4", "2 4", "10 3 2 3")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers covering [low, high]."""
    span = high - low or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around [low, high], with 2 and 5 between when few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9)
    marks = (1, 2, 5) if last - first <= 2 else (1,)
    every = [m * 10.0**p for p in range(first, last + 1) for m in marks]
    below = [t for t in every if t <= low * (1 + 1e-9)] or every[:1]
    above = [t for t in every if t >= high * (1 - 1e-9)] or every[-1:]
    return [t for t in every if below[-1] <= t <= above[0]]


def compact(value: float) -> str:
    """Three figures and a letter: 519168 → 519k, 0.0012 → 0.0012."""
    if value and abs(value) < 0.01:
        return f"{value:.2g}"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


class Frame:
    """Maps data to pixels and draws the axes."""

    def __init__(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        size: tuple[int, int],
        *,
        log: bool = False,
        left: int = 58,
        top: int = 14,
        x_range: tuple[float, float] | None = None,
    ) -> None:
        self.xs, self.ys, self.log = xs, ys, log
        self.left, self.right, self.top, self.bottom = left, size[0] - 18, top, size[1] - 44
        low, high = x_range or (xs[0], xs[-1])
        self.low, self.high = (low, high) if high > low else (low - 0.5, low + 0.5)

    def x(self, value: float) -> float:
        """Pixels of a data x."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Pixels of a data y."""
        low, high = self.ys[0], self.ys[-1]
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def vertical(self, label: str) -> Markup:
        """Grid lines and numbers of the horizontal axis."""
        shown = [v for v in self.xs if self.low <= v <= self.high]
        return join(
            [line(self.x(v), self.top, self.x(v), self.bottom, class_="grid") for v in shown],
            [text(self.x(v), self.bottom + 18, compact(v), "middle") for v in shown],
            text((self.left + self.right) / 2, self.bottom + 36, label, "middle", "axis"),
        )

    def grid(self, x_label: str, y_label: str) -> Markup:
        """Both axes."""
        return join(
            [line(self.left, self.y(v), self.right, self.y(v), class_="grid") for v in self.ys],
            [text(self.left - 8, self.y(v) + 4, compact(v), "end") for v in self.ys],
            self.vertical(x_label),
            tag(
                "text",
                y_label,
                class_="axis",
                text_anchor="middle",
                transform=(f"translate(14 {(self.top + self.bottom) / 2:.0f}) rotate(-90)"),
            ),
        )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag(
        "line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_
    )


def text(x: float, y: float, words: str, anchor: str, class_: str | None = None) -> Markup:
    """A word or number; `anchor` is start, middle or end."""
    return tag("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def whisker(x: float, low: float, high: float) -> str:
    """Path data of a vertical interval with caps."""
    return " ".join(
        (
            f"M{x:.1f},{low:.1f}V{high:.1f}",
            f"M{x - 5:.1f},{low:.1f}h10",
            f"M{x - 5:.1f},{high:.1f}h10",
        )
    )


def marker(shape: int, x: float, y: float, colour: int, tip: str = "") -> Markup:
    """One of five shapes around (x, y), with a tip shown by the pointer."""
    outline = (
        (-6, -6, 6, -6, 6, 6, -6, 6),
        (0, -8, 7.5, 6, -7.5, 6),
        (0, -8, 8, 0, 0, 8, -8, 0),
        (0, 8, 7.5, -6, -7.5, -6),
    )
    title = tag("title", tip) if tip else None
    if shape % 5 == 0:
        return tag(
            "circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=6.5, class_=f"mark c{colour % SERIES}"
        )
    corners = outline[shape % 5 - 1]
    points = " ".join(
        f"{x + corners[i]:.1f},{y + corners[i + 1]:.1f}" for i in range(0, len(corners), 2)
    )
    return tag("polygon", title, points=points, class_=f"mark c{colour % SERIES}")


def key(index: int, name: str, shape: int | None = None) -> Markup:
    """A legend entry: a piece of the line, or the marker when `shape` is given."""
    if shape is None:
        drawing = tag(
            "line",
            x1=0,
            y1=10,
            x2=24,
            y2=10,
            class_=f"line c{index % SERIES}",
            stroke_dasharray=DASHES[index // 2 % 4],
        )
    else:
        drawing = marker(shape, 12, 10, index)
    return tag(
        "span", tag("svg", drawing, viewBox="0 0 24 20", class_="key", aria_hidden="true"), name
    )


def figure(
    title: str,
    parts: Sequence[Markup],
    size: tuple[int, int],
    legend: Sequence[Markup],
    words: str,
) -> Markup:
    """A titled chart, legend above; `size` in pixels; `words` tell it to those who cannot see."""
    wide = size[0] > 700
    drawing = tag(
        "svg",
        tag("title", title),
        tag("desc", words),
        *parts,
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        class_="wide" if wide else None,
    )
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", *legend, class_="legend"),
        drawing,
        class_="chart",
        # A wide chart scrolls on a narrow screen, also from the keyboard.
        tabindex="0" if wide else None,
    )
