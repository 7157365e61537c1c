"""The documentation is run: Python blocks are executed, command lines are parsed.

The blocks of one page share one namespace and one empty working folder, in which a folder
``photos/`` of small pictures with captions stands ready. A block that cannot run is marked
```` ```python no-run: reason ````, and the reason must be given.
"""

from __future__ import annotations

import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^ *```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    info: str
    body: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["info"].strip(), found["body"], text.count("\n", 0, found.start()) + 2)
        for found in FENCE.finditer(text)
        if found["info"].split(" ")[0] == language
    ]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def make_photos(folder: Path) -> None:
    """Twelve pictures of coloured shapes with a caption each."""
    folder.mkdir()
    shapes = {"square": "rectangle", "circle": "ellipse"}
    for shape, draw in shapes.items():
        for colour in ("red", "green", "blue", "yellow", "black", "orange"):
            image = Image.new("RGB", (64, 64), "white")
            getattr(ImageDraw.Draw(image), draw)((12, 12, 52, 52), fill=colour)
            image.save(folder / f"{colour}-{shape}.png")
            (folder / f"{colour}-{shape}.txt").write_text(f"a {colour} {shape}\n")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: name(page)
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    _keep_registry(monkeypatch)
    module = types.ModuleType("docs_page")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "docs_page", module)
    for block in blocks(page, "python"):
        if block.info != "python":
            assert re.fullmatch(r"python no-run: \S.+", block.info), (
                f"{name(page)}:{block.line - 1}: say why the block is not run: "
                "```python no-run: reason"
            )
            compile(block.body, name(page), "exec")
            continue
        # Empty lines in front make the traceback show the line of the page.
        source = "\n" * (block.line - 1) + block.body
        exec(compile(source, str(page), "exec", dont_inherit=True), module.__dict__)


def _keep_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method registered by a page is forgotten after it."""
    from crossadapt.adapters import registry

    for method in registry.method_names():
        registry.get_method(method)  # import them all first, or the copy would take them along
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(registry, "_BY_CONFIG", dict(registry._BY_CONFIG))


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "bash")], ids=lambda page: name(page)
)
def test_command_lines_are_valid(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossadapt.cli.main import COMMANDS, load

    make_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "src"))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for block in blocks(page, "bash"):
        for line in block.body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            where = f"{name(page)}:{block.line}: {line}"
            if words[:1] == ["crossadapt"]:
                words = words[: words.index("|")] if "|" in words else words
                if words[1] in COMMANDS:
                    assert load(words[1]).parse(words[2:]) is not None or "--help" in words, where
                else:
                    assert words[1] in ("--help", "--version"), where
            elif words[:1] == ["make"]:
                assert re.search(rf"^{words[1]}:", makefile, re.M), where


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [p for p in (ROOT / "docs").rglob("*.md") if p.name != "README.md"]
    missing = [
        name(p) for p in pages if f"({p.relative_to(ROOT / 'docs').as_posix()})" not in index
    ]
    assert not missing, f"docs/README.md does not link to {missing}"
