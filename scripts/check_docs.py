"""Check that the documentation covers the project.

- every registered method has ``docs/methods/<name>.md``, and every such page has a method;
- every such page says what, from which paper, when to use it, its options, our results and what is
  unknown, and has an example that can be run;
- ``docs/cli.md`` shows the ``--help`` of every command as it is now (``--write`` renews it);
- every public name (in an ``__all__``) has a docstring;
- every relative link in a Markdown file leads to a file, and every anchor to a heading.

Usage: python scripts/check_docs.py [--write]
Prints one line per gap and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "crossadapt"
CLI_PAGE = ROOT / "docs" / "cli.md"
SKIPPED = {".git", ".venv", "runs", "build", "dist", ".pytest_cache", "node_modules"}

CLI_HEAD = """\
# Commands

Every command with every option it has, as `crossadapt COMMAND --help` prints it. This page is
written by `python scripts/check_docs.py --write` and checked by `make check`.

Options of a method are typed as `--method.NAME`, and which ones exist depends on `--method`:
`crossadapt train --method peft:lora --help` shows those of LoRA. Both `--batch-size` and
`--batch_size` are understood; a misspelt option is an error that names the nearest one.

Exit codes: 0 done, 1 something you can fix (the message says what, where and how), 2 a fault of
crossadapt, 130 interrupted. `--debug` shows the traceback of any error.
"""


def method_pages() -> Iterator[str]:
    """Methods without a page and pages without a method."""
    from crossadapt.adapters.registry import method_names

    names = {name.replace(":", "-") for name in method_names()}
    pages = {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} - {"README"}
    for name in sorted(names - pages):
        yield f"docs/methods/{name}.md: missing; every registered method has a page"
    for page in sorted(pages - names):
        yield f"docs/methods/{page}.md: no method has this name"


def method_sections() -> Iterator[str]:
    """Parts that a method's page lacks; the examples themselves are run by the tests."""
    for path in sorted((ROOT / "docs" / "methods").glob("*.md")):
        if path.stem != "README":
            yield from (f"docs/methods/{path.name}: {gap}" for gap in page_gaps(path.read_text()))


def page_gaps(text: str) -> list[str]:
    """What the text of one method's page lacks.

    The sections have to be there with something in them; the first lines say what the method is;
    the paper is a link to it, or the words that there is none.
    """
    pieces = re.split(r"^## (.+)$", re.sub(r"^# .*$", "", text, count=1, flags=re.M), flags=re.M)
    sections = dict(zip(pieces[1::2], map(str.strip, pieces[2::2]), strict=True))
    gaps = [] if pieces[0].strip() else ["nothing says what it is"]
    parts = ("When to use it", "Options", "Our results", "What is unknown")
    filled = [name for name, body in sections.items() if body]
    found = {part for part in parts for name in filled if name.startswith(part)}
    gaps += [f"no section '{part}'" for part in parts if part not in found]
    if not re.search(r"https://(arxiv\.org|openreview\.net|doi\.org)/|No paper of its own", text):
        gaps.append("no link to its paper")
    if not re.search(r"^```(python|bash)$", text, flags=re.M):
        gaps.append("no example that can be run")
    return gaps


def cli_page() -> str:
    """What docs/cli.md should say."""
    from crossadapt.cli.main import COMMANDS, overview

    parts = [CLI_HEAD, f"```text\n{overview()}\n```\n"]
    for command, words in COMMANDS.items():
        parts.append(f"## {command}\n\n{words[0].upper()}{words[1:]}.\n")
        parts += [f"```text\n{text}\n```\n" for text in _helps(command)]
    return "\n".join(parts)


def _helps(command: str) -> Iterator[str]:
    """The help of a command, then of its subcommands, at a fixed width and without colours."""
    from crossadapt.cli.main import load, main

    words = [command]
    for sub in ("", *getattr(load(command), "SUBCOMMANDS", ())):
        out = io.StringIO()
        plain = {"COLUMNS": "96", "NO_COLOR": "1", "TERM": "dumb"}
        with mock.patch.dict(os.environ, plain), contextlib.redirect_stdout(out):
            main([*words, *([sub] if sub else []), "--help"])
        text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
        yield "\n".join(line.rstrip() for line in text.strip().splitlines())


def cli_coverage() -> Iterator[str]:
    """Whether docs/cli.md is what the program says today."""
    if not CLI_PAGE.exists() or CLI_PAGE.read_text(encoding="utf-8") != cli_page():
        yield "docs/cli.md: differs from --help; run python scripts/check_docs.py --write"


def docstrings() -> Iterator[str]:
    """Public names without a docstring, in every module that lists its public names."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        where = path.relative_to(ROOT)
        if not ast.get_docstring(tree):
            yield f"{where}:1: module without a docstring"
        if not _public_names(tree):
            continue
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        module = importlib.import_module(".".join(p for p in parts if p != "__init__"))
        for name in _public_names(tree):
            yield from (f"{where}:1: {gap}" for gap in _undocumented(module, name))


def _public_names(tree: ast.Module) -> list[str]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return [
                c.value
                for c in ast.walk(node)
                if isinstance(c, ast.Constant) and isinstance(c.value, str)
            ]
    return []


def _undocumented(module: ModuleType, name: str) -> Iterator[str]:
    if not hasattr(module, name):
        yield f"__all__ lists {name!r}, which does not exist"
        return
    value = getattr(module, name)
    if (inspect.isclass(value) or inspect.isroutine(value)) and not inspect.getdoc(value):
        yield f"{name} has no docstring"


def markdown_files() -> list[Path]:
    """Every Markdown file of the project."""
    found = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [n for n in names if n not in SKIPPED]
        found += [Path(folder) / f for f in files if f.endswith(".md")]
    return sorted(found)


def links() -> Iterator[str]:
    """Relative links and anchors that lead nowhere."""
    for page in markdown_files():
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        text = re.sub(r"`[^`\n]*`", "", text)
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            file, _, anchor = target.partition("#")
            goal = (page.parent / file).resolve() if file else page
            if not goal.exists():
                yield f"{page.relative_to(ROOT)}: broken link {target}"
            elif anchor and goal.suffix == ".md" and anchor not in _anchors(goal):
                yield f"{page.relative_to(ROOT)}: no heading for {target}"


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in heads}


def main(argv: list[str]) -> int:
    """Print the gaps; 1 if there are any."""
    if "--write" in argv:
        CLI_PAGE.write_text(cli_page(), encoding="utf-8")
    found = [*method_pages(), *method_sections(), *cli_coverage(), *docstrings(), *links()]
    for line in found:
        print(line)
    print(f"documentation: {len(found)} gap{'s' * (len(found) != 1)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
