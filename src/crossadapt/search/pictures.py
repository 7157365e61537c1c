"""Small pictures in a terminal: which protocol it understands, and how a picture is written in it.

Detection reads environment variables only; the terminal is never asked, because an answer that
comes late would end up in the user's next command. In this order:

* output that is no terminal, ``TERM=dumb``, or a multiplexer (``TERM`` begins with ``screen`` or
  ``tmux``, which swallow pictures unless set up otherwise): nothing;
* kitty: ``KITTY_WINDOW_ID`` is set, or ``TERM`` is ``xterm-kitty`` or ``xterm-ghostty``;
* iTerm2: ``TERM_PROGRAM`` is ``iTerm.app``, ``WezTerm`` or ``mintty``, or ``LC_TERMINAL`` is
  ``iTerm2``;
* sixel: ``TERM`` begins with ``foot``, ``mlterm``, ``contour`` or ``yaft``, or contains ``sixel``;
* otherwise nothing; half blocks in 24-bit colour only when asked for.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image

Protocol = Literal["kitty", "iterm2", "sixel", "blocks", ""]

CELL = (10, 20)
"""Pixels of a character cell that are assumed where a protocol needs pixels: width, height."""
_CHUNK = 4096
_COLOURS = 64


def detect(environment: Mapping[str, str], terminal: bool) -> Protocol:
    """The protocol of a terminal by its environment; see the module docstring."""
    term = environment.get("TERM", "")
    if not terminal or term in ("", "dumb") or term.startswith(("screen", "tmux")):
        return ""
    if environment.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    program = environment.get("TERM_PROGRAM", "")
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if term.startswith(("foot", "mlterm", "contour", "yaft")) or "sixel" in term:
        return "sixel"
    return ""


def encode(image: Image.Image, protocol: Protocol, columns: int, rows: int) -> str:
    """One picture as escape sequences, within `columns` x `rows` cells, keeping its proportions.

    ``blocks`` gives lines separated by newlines; the others are drawn where the cursor is.
    """
    image = image.convert("RGB")
    columns, rows = fit(image.size, columns, rows)
    if protocol == "blocks":
        return _blocks(image, columns, rows)
    if protocol == "sixel":
        return _sixel(image.resize((columns * CELL[0], rows * CELL[1])))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    if protocol == "iterm2":
        return (
            f"\x1b]1337;File=inline=1;width={columns};height={rows};"
            f"preserveAspectRatio=1;size={len(buffer.getvalue())}:{data}\a"
        )
    # q=2: the terminal must not answer; C=1: the cursor stays where it is.
    parts = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    head = f"a=T,f=100,q=2,C=1,c={columns},r={rows},"
    return "".join(
        f"\x1b_G{head if not index else ''}m={int(index < len(parts) - 1)};{part}\x1b\\"
        for index, part in enumerate(parts)
    )


def fit(size: tuple[int, int], columns: int, rows: int) -> tuple[int, int]:
    """The cells, at most `columns` x `rows`, in which a picture of `size` keeps its proportions."""
    width, height = size[0] / CELL[0], size[1] / CELL[1]
    scale = min(columns / width, rows / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def strip(
    pictures: Sequence[tuple[str, Image.Image]], protocol: Protocol, width: int,
    columns: int = 16, rows: int = 6,
) -> str:  # fmt: skip
    """Labelled pictures side by side, as many to a line as `width` columns hold."""
    cell = columns + 2
    per_line = max(1, width // cell)
    lines = []
    for start in range(0, len(pictures), per_line):
        some = pictures[start : start + per_line]
        lines.append("".join(f"{label[:columns]:<{cell}}" for label, _ in some).rstrip())
        drawn = [encode(image, protocol, columns, rows) for _, image in some]
        if protocol == "blocks":
            lines += _beside(drawn, cell)
            continue
        # Scroll first, so that no picture moves the saved place; then draw from left to right.
        moved = "".join(f"\x1b7{part}\x1b8\x1b[{cell}C" for part in drawn)
        lines.append("\n" * rows + f"\x1b[{rows}A" + moved + f"\r\x1b[{rows}B")
    return "\n".join(lines)


def _beside(drawn: Sequence[str], cell: int) -> list[str]:
    """Pictures made of text side by side, each in a field of `cell` columns."""
    grids = [part.split("\n") for part in drawn]
    filled = []
    for row in range(max(map(len, grids))):
        parts = [grid[row] if row < len(grid) else "" for grid in grids]
        filled.append("".join(part + " " * (cell - part.count("▀")) for part in parts).rstrip(" "))
    return filled


def _blocks(image: Image.Image, columns: int, rows: int) -> str:
    """Upper half blocks: two pixels to a cell, the upper as text colour, the lower behind it."""
    pixels = np.asarray(image.resize((columns, 2 * rows), Image.Resampling.BOX))
    lines = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = "".join(
            f"\x1b[38;2;{a};{b};{c};48;2;{d};{e};{f}m▀"
            for (a, b, c), (d, e, f) in zip(upper, lower, strict=True)
        )
        lines.append(f"{cells}\x1b[0m")
    return "\n".join(lines)


def _sixel(image: Image.Image) -> str:
    """DEC sixel: bands of six rows, one pass per colour of a small palette."""
    small = image.quantize(_COLOURS)
    palette = np.asarray(small.getpalette() or [0, 0, 0], np.int64).reshape(-1, 3) * 100 // 255
    pixels = np.asarray(small)
    height, width = pixels.shape
    out = [f'\x1bPq"1;1;{width};{height}']
    out += [f"#{i};2;{r};{g};{b}" for i, (r, g, b) in enumerate(palette.tolist())]
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        bits = 1 << np.arange(len(band))[:, None]
        passes = [
            f"#{colour}" + _repeated(((band == colour) * bits).sum(0)) for colour in np.unique(band)
        ]
        out.append("$".join(passes) + "-")
    return "".join(out) + "\x1b\\"


def _repeated(column: np.ndarray) -> str:
    """One pass of a band: a character per column, runs written as ``!count``."""
    starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
    lengths = np.diff(np.r_[starts, len(column)])
    return "".join(
        f"!{n}{chr(63 + v)}" if n > 3 else chr(63 + v) * n
        for v, n in zip(column[starts].tolist(), lengths.tolist(), strict=True)
    )
