"""Check that imports point one way.

Every import of one part of crossadapt by another, wherever it stands in a file, must be in
`ALLOWED`. Plug-ins are looked up by name (``importlib``) and are not seen here: that is how the
registry finds the methods without knowing them.

Usage: python scripts/check_imports.py [SOURCE_DIR]
Prints one line per violation, ``file:line: reason``, and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "crossadapt"
SOURCE = Path(__file__).resolve().parent.parent / "src" / PACKAGE

_FREE = {"errors", "files", "parallel"}
_MODEL = {"layers", "backbones"} | _FREE
_TRAINED = _MODEL | {"adapters", "methods"}
_TASK = _TRAINED | {"tasks", "data", "evaluation", "integrations"}

# part -> the parts it may import. `integrations` is reached only from inside functions, because
# each of its files needs an extra that may not be installed.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "parallel": set(),
    "layers": _FREE,
    "backbones": _MODEL,
    "adapters": _MODEL | {"integrations"},
    "methods": _MODEL | {"adapters"},
    "data": _FREE,
    "evaluation": _FREE | {"data"},
    "tasks": _TASK,
    "training": _TASK | {"training"},
    "search": _TASK | {"search"},
    "integrations": _TASK | {"training", "search"},
    "cli": _TASK | {"training", "search"},
    "": _TASK | {"training", "search"},  # crossadapt/__init__.py, the front door
}

# Libraries that only some parts may import, and those too slow for the start of the program.
ONLY_IN = {
    "peft": {"integrations"},
    "tyro": {"cli"},
    "matplotlib": {"evaluation"},
    "lancedb": {"search"},
    "fastapi": {"search"},
    "av": {"data"},
    "openvino": {"backbones"},
    "onnxruntime": {"backbones"},
}
HEAVY = {"torch", "transformers", "numpy", "pyarrow", "accelerate", "PIL", "peft", "matplotlib"}
LIGHT_FILES = {"__init__.py", "errors.py", "cli/__init__.py", "cli/main.py"}


def violations(source: Path = SOURCE) -> list[str]:
    """Every violation under `source`, as ``file:line: reason``."""
    found = []
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        for node, module, at_top in _imports(path, relative):
            reason = _reason(relative, module, at_top)
            if reason:
                found.append(f"{path}:{node.lineno}: {reason}")
    return found


def _imports(path: Path, relative: Path) -> Iterator[tuple[ast.stmt, str, bool]]:
    """Every imported module of a file with its statement and whether it runs at import time."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, relative)
            if base == PACKAGE:  # `from crossadapt import data` imports crossadapt.data
                for alias in node.names:
                    yield node, f"{PACKAGE}.{alias.name}", id(node) not in late
            else:
                yield node, base, id(node) not in late


def _absolute(node: ast.ImportFrom, relative: Path) -> str:
    if not node.level:
        return node.module or ""
    package = [PACKAGE, *relative.parts[:-1]]
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _reason(relative: Path, module: str, at_top: bool) -> str:
    """Why the import breaks a rule, or an empty string."""
    part = relative.parts[0].removesuffix(".py") if len(relative.parts) > 1 else relative.stem
    part = "" if part == "__init__" else part
    top, _, rest = module.partition(".")
    if top != PACKAGE:
        if at_top and top in HEAVY and relative.as_posix() in LIGHT_FILES:
            return f"{top} is too slow to import here; import it where it is used"
        if top in ONLY_IN and part not in ONLY_IN[top]:
            return f"only {', '.join(sorted(ONLY_IN[top]))} may import {top}"
        return ""
    target = rest.partition(".")[0]
    if target not in ALLOWED or target in ("", part):
        return ""  # a name of the front door, or the part itself
    if target not in ALLOWED.get(part, set()):
        return f"{part or PACKAGE} must not import {PACKAGE}.{target}"
    if target == "integrations" and at_top:
        return "integrations need an extra; import them inside a function"
    return ""


def main(argv: list[str]) -> int:
    """Print the violations; 1 if there are any."""
    found = violations(Path(argv[0]) if argv else SOURCE)
    for line in found:
        print(line)
    print(f"imports: {len(found)} violation{'s' * (len(found) != 1)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
