"""The project's own checks work: they find what they are for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from scripts import check_docs, check_imports


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/x.py", "from crossadapt.backbones import load"),
        ("data/x.py", "def f():\n    import crossadapt.methods.full"),
        ("evaluation/x.py", "from crossadapt import adapters"),
        ("layers/x.py", "from ..adapters import plan"),
        ("tasks/x.py", "from crossadapt.cli.main import main"),
        ("adapters/x.py", "from crossadapt.methods import full"),
        ("training/x.py", "from crossadapt.search import index"),
        ("adapters/x.py", "from crossadapt.integrations import peft"),
        ("tasks/x.py", "import peft"),
        ("cli/main.py", "import torch"),
        ("__init__.py", "from numpy import array"),
    ],
)
def test_import_check_finds(file: str, text: str, tmp_path: Path) -> None:
    [found] = check_imports.violations(tree(tmp_path, {file: text}))
    assert found.startswith(f"{tmp_path / file}:")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("training/x.py", "from crossadapt.tasks import base\nfrom crossadapt.errors import E"),
        ("adapters/x.py", "def f():\n    from crossadapt.integrations import peft"),
        ("integrations/x.py", "import peft\nfrom crossadapt.training import run"),
        ("cli/train.py", "import tyro\nfrom crossadapt.training import run"),
        ("__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("data/x.py", "from .ledger import Ledger"),
    ],
)
def test_import_check_allows(file: str, text: str, tmp_path: Path) -> None:
    assert check_imports.violations(tree(tmp_path, {file: text})) == []


def test_import_directions_of_the_tree() -> None:
    assert check_imports.violations() == []


def test_every_relative_link_resolves() -> None:
    assert list(check_docs.links()) == []


def test_link_check_finds_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# A page\n[a](#a-page) [b](#no) [c](gone.md) `[d](code.md)` [e](https://x.org/y)\n"
    tree(tmp_path, {"page.md": text})
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    assert list(check_docs.links()) == [
        "page.md: no heading for #no",
        "page.md: broken link gone.md",
    ]


def test_docs_cover_the_project() -> None:
    assert list(check_docs.method_pages()) == []
    assert list(check_docs.method_sections()) == []
    assert list(check_docs.cli_coverage()) == []
    assert list(check_docs.docstrings()) == []


def test_what_is_pinned_satisfies_what_is_asked(repo: Path) -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = {r.name: r.specifier for listed in lists for r in map(Requirement, listed)}
    pinned = [Requirement(line) for line in (repo / "constraints.txt").read_text().split()]
    for pin in pinned:
        [exact] = pin.specifier
        assert exact.operator == "=="
        if pin.name in asked:
            assert asked[pin.name].contains(exact.version), pin
    assert "torchvision" not in {pin.name for pin in pinned} | set(asked)


def test_a_fresh_environment_gets_open_clip_but_no_torchvision(repo: Path) -> None:
    """open_clip_torch asks for torchvision, so nothing that is resolved may ask for it."""
    from packaging.requirements import Requirement

    extras = tomllib.loads((repo / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    names, todo = set(), ["dev"]
    while todo:
        for asked in map(Requirement, extras[todo.pop()]):
            todo += asked.extras if asked.name == "crossadapt" else []
            names.add(asked.name)
    assert "pytest" in names
    assert not names & {"open_clip_torch", "timm", "torchvision"}
    assert {"ftfy", "regex"} <= names
    makefile = (repo / "Makefile").read_text()
    assert "-c constraints.txt --no-deps open_clip_torch\n" in makefile
    assert "open_clip_torch==" in (repo / "constraints.txt").read_text()


def test_ci_runs_the_two_commands_of_the_readme(repo: Path) -> None:
    script = (repo / ".ci" / "run").read_text()
    assert "set -euo pipefail" in script
    assert script.index("make test") < script.index("make check")
    assert "make test" in (repo / "README.md").read_text()


def test_a_page_of_a_method_needs_all_its_parts() -> None:
    page = (check_docs.ROOT / "docs" / "methods" / "vpt.md").read_text()
    assert check_docs.page_gaps(page) == []
    without = page.replace("## Our results", "## Something")
    assert check_docs.page_gaps(without) == ["no section 'Our results'"]
