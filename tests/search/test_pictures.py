from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from crossadapt.search.pictures import CELL, detect, encode, fit, strip


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-sixel"}, "sixel"),
        ({"TERM": "xterm-256color"}, ""),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, ""),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, ""),
        ({"TERM": "dumb", "LC_TERMINAL": "iTerm2"}, ""),
        ({}, ""),
    ],
)
def test_detection(environment: dict[str, str], protocol: str) -> None:
    assert detect(environment, terminal=True) == protocol
    assert detect(environment, terminal=False) == ""


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def test_kitty_sends_the_png_in_chunks() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", encode(image, "kitty", 10, 5))
    assert len(parts) > 2
    assert parts[0][0].startswith("a=T,f=100,q=2,C=1,c=10,r=5,")
    assert [head[-3:] for head, _ in parts] == ["m=1"] * (len(parts) - 1) + ["m=0"]
    assert all(len(data) <= 4096 for _, data in parts)
    sent = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in parts))))
    assert np.array_equal(np.asarray(sent), np.asarray(image))


def test_iterm2_sends_the_png_with_its_size() -> None:
    text = encode(gradient(), "iterm2", 10, 5)
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;width=10;height=3;.*size=(\d+):(.*)\x07", text)
    data = base64.b64decode(found[2])
    assert len(data) == int(found[1])
    assert Image.open(io.BytesIO(data)).size == (60, 40)


def test_sixel_draws_the_picture() -> None:
    text = encode(gradient(), "sixel", 6, 3)
    columns, rows = fit((60, 40), 6, 3)
    size = (columns * CELL[0], rows * CELL[1])
    drawn = sixel(text, size)
    want = np.asarray(gradient().resize(size), np.int64)
    assert np.abs(drawn - want).mean() < 12


def sixel(text: str, size: tuple[int, int]) -> np.ndarray:
    """A small reader of sixel: int64 (height, width, 3)."""
    assert text.startswith("\x1bPq")
    assert text.endswith("\x1b\\")
    out = np.zeros((size[1] + 6, size[0], 3), np.int64)
    colours: dict[int, list[int]] = {}
    x = top = colour = 0
    tokens = re.findall(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)(.)|([\x3f-\x7e])|([$-])",
                        text[text.index("#") : -2])  # fmt: skip
    for number, r, g, b, count, repeated, single, move in tokens:
        if number:
            colour = int(number)
            if r:
                colours[colour] = [int(v) * 255 // 100 for v in (r, g, b)]
        elif move:
            x, top = 0, top + 6 * (move == "-")
        else:
            run = int(count or 1)
            for bit in range(6):
                if (ord(repeated or single) - 63) >> bit & 1:
                    out[top + bit, x : x + run] = colours[colour]
            x += run
    return out[: size[1]]


def test_blocks_hold_two_pixels_each() -> None:
    text = encode(gradient(40, 40), "blocks", 8, 4)
    want = np.asarray(gradient(40, 40).resize((8, 8), Image.Resampling.BOX))
    lines = text.split("\n")
    assert len(lines) == 4
    for number, line in enumerate(lines):
        cells = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", line)
        assert len(cells) == 8
        assert line.endswith("\x1b[0m")
        values = np.array(cells, int)
        assert np.array_equal(values[:, :3], want[2 * number])
        assert np.array_equal(values[:, 3:], want[2 * number + 1])


@pytest.mark.parametrize("size", [(10, 10), (1000, 10), (10, 1000), (1, 1)])
def test_pictures_fit_their_cell(size: tuple[int, int]) -> None:
    columns, rows = fit(size, 16, 6)
    assert 1 <= columns <= 16
    assert 1 <= rows <= 6


def test_a_strip_puts_pictures_side_by_side() -> None:
    some = [(str(number), gradient()) for number in (1, 2, 3)]
    blocks = strip(some, "blocks", width=40, columns=16, rows=6).split("\n")
    assert blocks[0].split() == ["1", "2"]  # two of 18 columns fit in 40
    assert blocks[1].count("▀") == 2 * 16
    assert "3" in [line.strip() for line in blocks]
    drawn = strip(some, "kitty", width=80, columns=16, rows=6)
    assert drawn.count("\x1b7") == drawn.count("\x1b8") == drawn.count("\x1b[18C") == 3
    assert drawn.endswith("\r\x1b[6B")
