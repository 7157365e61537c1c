"""The picture of the cost of growth: seconds over size, both logarithmic, one line per cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crossadapt.evaluation.html import tag
from crossadapt.evaluation.svg import DASHES, Frame, compact, line, log_ticks, marker, text

SIZE = (760, 420)
STYLE = """
text { font: 13px sans-serif; fill: #625e57 }
.axis { fill: #1d1c1a }
.grid { stroke: #e4e0d8 }
.line { fill: none; stroke-width: 2 }
.mark { stroke: white }
"""
COLOURS = ("#3550c8", "#c2620a", "#1a7f4e", "#a82c90", "#0a7796", "#80641a", "#c02626", "#5f5b55")


def picture(curves: Sequence[Mapping[str, Any]]) -> str:
    """A whole SVG file, with its style, of the curves of a growth document."""
    values = [value for curve in curves for value in curve["seconds"]]
    scales = sorted({scale for curve in curves for scale in curve["scales"]})
    powers = log_ticks(min(values), max(values))
    # The vertical axis is linear in the exponent; its numbers are written by hand.
    levels = [math.log10(value) for value in powers]
    frame = Frame(scales, levels, SIZE, log=True, left=70, top=16 + 18 * len(curves))
    parts = [tag("style", STYLE + _colours(len(curves))), tag("title", "Cost of growth")]
    for value, level in zip(powers, levels, strict=True):
        y = frame.y(level)
        parts.append(line(frame.left, y, frame.right, y, class_="grid"))
        parts.append(text(frame.left - 8, y + 4, f"{compact(value)} s", "end"))
    parts.append(frame.vertical("size, times the smallest"))
    for index, curve in enumerate(curves):
        places = [
            (frame.x(scale), frame.y(math.log10(value)))
            for scale, value in zip(curve["scales"], curve["seconds"], strict=True)
        ]
        parts.append(
            tag(
                "path",
                d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places),
                class_=f"line c{index}",
                stroke_dasharray=DASHES[index // 2 % len(DASHES)],
            )
        )
        parts += [marker(index, x, y, index) for x, y in places]
        height = 16 + 18 * index
        parts.append(marker(index, frame.left + 8, height, index))
        words = f"{curve['what']}: slope {curve['slope']:.2f}"
        parts.append(text(frame.left + 22, height + 4, words, "start"))
    drawn = tag(
        "svg", *parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {SIZE[0]} {SIZE[1]}"
    )
    return f"{drawn}\n"


def _colours(count: int) -> str:
    return "".join(
        f".line.c{i} {{ stroke: {COLOURS[i]} }}\n.mark.c{i} {{ fill: {COLOURS[i]} }}\n"
        for i in range(count)
    )
