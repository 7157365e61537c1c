"""Start-up: the time until the command line, a search and the server answer.

    python bench/startup.py [--rounds 5] [--output FILE]

Every figure is of a process of its own. ``import torch`` is measured in turn with the search, whose
target is stated over it. The collection holds a few generated pictures and the bundled model.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from importlib.metadata import version
from pathlib import Path

import _model
import _record
from _sides import claim

CLI = [sys.executable, "-m", "crossadapt.cli.main"]
_HELP, _OVER_TORCH, _FIRST = 0.3, 1.5, 0.5
_IMPORTS = (
    "Of what is imported beside torch, lancedb takes a third (three fifths of that are the request "
    "models of its lance_namespace, which every import of it builds) and transformers most of the "
    "rest (its model classes import its generation code and torch.distributed.tensor, which "
    "imports sympy). No smaller entry was found. Garbage is not collected meanwhile: 7 % less in "
    "six turns. Left out: stand-ins in sys.modules, which could change what a user's own code "
    "finds there; a second process that loads the model while the first opens the collection."
)


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """How long a command takes, from its start to its end.

    Raises:
        CalledProcessError: it failed.
    """
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_answer(store: Path, environment: dict[str, str]) -> float:
    """Seconds of a server's first search, sent when it says that it is ready."""
    command = [*CLI, "serve", "bench", "--store", str(store), "--port", "0"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            found = re.search(r"http://\S+", line)
            if found:
                break
        else:
            raise RuntimeError("the server ended before it was ready")
        words = urllib.parse.urlencode({"collection": "bench", "q": "a red circle"})
        start = time.perf_counter()
        with urllib.request.urlopen(f"{found[0]}/search?{words}") as answer:
            answer.read()
        return time.perf_counter() - start
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    _record.output_option(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one round")
    args = parser.parse_args()
    rounds = 1 if args.smoke else args.rounds
    machine = _record.machine()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    found: dict[str, list[float]] = {"help": [], "torch": [], "search": [], "first": []}
    with tempfile.TemporaryDirectory(prefix="crossadapt-bench-") as folder:
        pictures, store = Path(folder) / "pictures", Path(folder) / "store"
        _model.make_pictures(pictures, 16)
        index = ["index", str(pictures), "--collection", "bench", "--store", str(store), "--quiet"]
        seconds([*CLI, *index], environment)
        search = [*CLI, "search", "bench", "a red circle", "--store", str(store)]
        for turn in range(rounds + 1):
            now = {
                "help": seconds([*CLI, "--help"], environment),
                "torch": seconds([sys.executable, "-c", "import torch"], environment),
                "search": seconds(search, environment),
                "first": first_answer(store, environment),
            }
            print({name: round(value, 3) for name, value in now.items()}, file=sys.stderr)
            if turn:  # the first turn fills the disk cache
                for name, value in now.items():
                    found[name].append(value)
    over = [a - b for a, b in zip(found["search"], found["torch"], strict=True)]
    torch_note = f"`import torch` takes {statistics.median(found['torch']):.2f} s beside it."
    _record.finish(
        {
            "machine": machine,
            "command": f"python bench/startup.py --rounds {rounds}",
            "versions": {name: version(name) for name in ("torch", "transformers", "lancedb")},
            "claims": [
                claim(
                    f"{what} against {limit:g} s",
                    times,
                    [limit] * rounds,
                    names=("ours", "limit"),
                    unit="s",
                    at_most=1.0,
                    note=note,
                    missed=missed,
                )
                for what, times, limit, note, missed in (
                    ("crossadapt --help", found["help"], _HELP, "", "Bound by Python's start."),
                    (
                        "crossadapt search, over import torch,",
                        over,
                        _OVER_TORCH,
                        torch_note,
                        _IMPORTS,
                    ),
                    (
                        "server's first answer after it is ready",
                        found["first"],
                        _FIRST,
                        "",
                        "Not profiled.",
                    ),
                )
            ],
            "floor": [
                {"what": "import torch", "value": statistics.median(found["torch"]), "unit": "s"}
            ],
        },
        args.output,
    )


if __name__ == "__main__":
    main()
