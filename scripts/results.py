"""Write every page of measured results from the committed JSON, or check that they are written.

A kind of results is a module of this folder with ``pages(root)``, which gives the text of each
file it is answerable for: `results_pages` (methods), `search_results` and `speed_results`. A number
on these pages comes from a JSON file or is not there.

Usage: python scripts/results.py [--write]
Without --write, prints one line for each file that is not what the JSON says, and exits with 1.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("results_pages", "search_results", "speed_results")


def pages(root: Path = ROOT) -> dict[Path, str]:
    """What each file of every kind should say."""
    found: dict[Path, str] = {}
    for kind in KINDS:
        found |= importlib.import_module(f"scripts.{kind}").pages(root)
    return found


def main(argv: list[str]) -> int:
    """Write or check; the number of files that differ decides the exit code."""
    gaps = 0
    for path, text in pages().items():
        if "--write" in argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path.relative_to(ROOT)}: run python scripts/results.py --write")
            gaps += 1
    print(f"results: {gaps} pages to renew")
    return int(gaps > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
