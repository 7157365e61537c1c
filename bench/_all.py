"""Run the benches one after another, each into its place, and write the pages of their results.

    python bench/_all.py [NAME ...] [--smoke]

Without names, all of them. ``--smoke`` runs each at a tiny size in minutes at most and keeps
nothing: it shows that they run, its figures mean nothing. A bench that fails does not stop the
others; the exit code is 1 if any did.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PLACES = dict.fromkeys(("search", "search_million", "index_resume", "serve_load"), "search")
"""Folder of docs/results for what a bench writes, where it is not ``speed``."""
PRINTS_ONLY = ("frame_cache",)
SMALL = {
    "index_resume": ["--items", "200", "--kills", "1"],
    "serve_load": ["--seconds", "2", "--connections", "4", "--rows", "50"],
    "frame_cache": [
        *("--videos", "1", "--size", "160", "120", "--seconds", "2", "--rounds", "1"),
    ],
}
"""Options of a small run, where they are not ``--smoke``."""


def names() -> list[str]:
    """All benches: scripts of this folder that are no part of another."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def words(name: str, *, smoke: bool) -> list[str]:
    """The command of a bench."""
    command = [sys.executable, str(HERE / f"{name}.py")]
    if smoke:
        return [*command, *SMALL.get(name, ["--smoke"])]
    if name in PRINTS_ONLY:
        return command
    place = ROOT / "docs" / "results" / PLACES.get(name, "speed")
    return [*command, "--output", str(place / f"{name}.json")]


def main(argv: list[str]) -> int:
    """Run, then renew the pages unless the figures mean nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="benches; all unless given")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing is kept")
    options = parser.parse_args(argv)
    unknown = set(options.names) - set(names())
    if unknown:
        parser.error(f"no such bench: {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    failed = []
    for name in options.names or names():
        print(f"== {name}", flush=True)
        start = time.monotonic()
        if subprocess.run(words(name, smoke=options.smoke), check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
    if not options.smoke:
        subprocess.run([sys.executable, ROOT / "scripts" / "results.py", "--write"], check=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
