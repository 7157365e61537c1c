"""The files of the page: what a browser is not needed for."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

PAGE = files("crossadapt.search") / "page"
TEXTS = {entry.name: entry.read_text("utf-8") for entry in PAGE.iterdir() if entry.is_file()}
TEXT_PAIRS = [
    (ink, ground)
    for ink in ("ink", "soft")
    for ground in ("ground", "surface", "raised", "sunk", "accent-wash")
]
TEXT_PAIRS += [(f"{kind}", f"{kind}-wash") for kind in ("accent", "frozen", "up", "down", "new")]
TEXT_PAIRS += [("accent", "ground"), ("accent", "surface"), ("accent-ink", "accent")]
TEXT_PAIRS += [("ink", "bad-wash"), ("soft", "frozen-wash")]


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def themes() -> dict[str, dict[str, str]]:
    css = TEXTS["base.css"]
    light = re.search(r"^:root \{(.*?)^\}", css, re.S | re.M)
    chosen = re.search(r'^:root\[data-theme="dark"\] \{(.*?)^\}', css, re.S | re.M)
    system = re.search(r":not\(\[data-theme=\"light\"\]\) \{(.*?)\}", css, re.S)
    assert light is not None
    assert chosen is not None
    assert system is not None
    assert colours(chosen[1]) == colours(system[1])
    return {"light": colours(light[1]), "dark": colours(light[1]) | colours(chosen[1])}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(theme: str) -> None:
    values = themes()[theme]
    low = {}
    for ink, ground in TEXT_PAIRS:
        a, b = sorted((luminance(values[ink]), luminance(values[ground])))
        if (b + 0.05) / (a + 0.05) < 4.5:
            low[ink, ground] = round((b + 0.05) / (a + 0.05), 2)
    assert low == {}


def test_nothing_is_taken_from_elsewhere() -> None:
    for name, text in TEXTS.items():
        found = set(re.findall(r"https?://[^\s\"'<)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert found == set(), name


def test_markup_has_no_script_or_style_of_its_own() -> None:
    page = TEXTS["index.html"]
    assert not re.search(r"<script(?![^>]*\ssrc=)", page)
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)
    for name, text in TEXTS.items():
        if name.endswith(".js"):
            assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\(|new Function", text), name


def test_every_file_named_is_there() -> None:
    for name, text in TEXTS.items():
        wanted = re.findall(r"/page/([\w.-]+\.\w+)", text)
        wanted += re.findall(r'from "\./([\w.-]+)"', text)
        assert set(wanted) <= set(TEXTS), name
    icons = set(re.findall(r'<symbol id="(\w+)"', TEXTS["icons.svg"]))
    used = {n for t in TEXTS.values() for n in re.findall(r'(?:icons\.svg#|\bicon\(")(\w+)', t)}
    assert used <= icons


def test_modules_are_small() -> None:
    long = {name: n for name, text in TEXTS.items() if (n := text.count("\n")) >= 300}
    assert long == {}
