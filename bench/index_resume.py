"""Kill an indexing job at random moments, resume it, and compare with a run that was left alone.

Renders pictures, indexes them once without interruption, then again with SIGKILL at random times
and a last run that gets through, and prints one JSON document: whether ids and vectors agree, what
a further run still embeds, and whether a killed job left processes behind. A kill only counts if
the job was still at work.

    python bench/index_resume.py [--items 20000] [--kills 5] [--backbone pico-clip] [--seed 0]
                                 [--workers 2] [--output FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import _record
from crossadapt.search.collection import Collections

NAME = "rendered"
MARK = "CROSSADAPT_BENCH_JOB"
"""Environment variable by which the processes of a job are found, its workers included."""


def render(folder: Path, count: int) -> None:
    """`count` different small pictures, a thousand in each subfolder."""
    for seed in range(count):
        chance = random.Random(seed)
        colours = [tuple(chance.randrange(256) for _ in range(3)) for _ in range(3)]
        image = Image.new("RGB", (96, 80), colours[0])
        draw = ImageDraw.Draw(image)
        for colour in colours[1:]:
            x, y = chance.randrange(60), chance.randrange(50)
            shape = chance.choice((draw.ellipse, draw.rectangle))
            shape((x, y, x + chance.randrange(8, 36), y + chance.randrange(8, 30)), fill=colour)
        place = folder / f"{seed // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{seed:06d}.png", compress_level=1)


def command(pictures: Path, store: Path, options: argparse.Namespace) -> list[str]:
    """The job as a user types it."""
    words = [sys.executable, "-m", "crossadapt.cli.main", "index", str(pictures), "--json"]
    words += ["--collection", NAME, "--store", str(store), "--backbone", options.backbone]
    return [*words, "--workers", str(options.workers)]


def rows(store: Path) -> tuple[list[str], np.ndarray]:
    """Sorted ids (N,) and their vectors (N, D)."""
    collection = Collections(str(store)).open(NAME)
    ids: list[str] = []
    parts = []
    for batch in collection.scan(["id", "vector_frozen"]):
        ids += batch.column("id").to_pylist()
        flat = batch.column("vector_frozen").flatten().to_numpy(zero_copy_only=False)
        parts.append(flat.reshape(batch.num_rows, -1))
    order = np.argsort(ids)
    return [ids[i] for i in order], np.concatenate(parts)[order]


def finished(words: list[str]) -> dict:
    """Run to the end; the job's own report."""
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)


def processes(folder: Path) -> int:
    """How many processes of a job on the store `folder` there are, its workers included."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            found += f"{MARK}={folder}".encode() in entry.read_bytes().split(b"\0")
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def kill_at(words: list[str], seconds: float, folder: Path) -> dict:
    """Start the job, kill -9 it `seconds` after its workers began; what it left."""
    environment = {**os.environ, MARK: str(folder)}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
    # Loading Python and the model takes a while: the interesting moments come after it.
    wait_until(lambda: processes(folder) > 1 or process.poll() is not None, 600)
    time.sleep(seconds)
    process.kill()
    ended = process.wait()
    stored = Collections(str(folder))
    known = len(stored.open(NAME)) if NAME in stored.names() else 0
    wait_until(lambda: processes(folder) == 0, 10)
    done = {"after_seconds": round(seconds, 1), "exit": ended, "rows": known}
    done["processes_left"] = processes(folder)
    print(f"killed: {done}", file=sys.stderr)
    return done


def own_backbone(named: str, folder: Path) -> str:
    """The backbone to use: a tiny one is made anew in every process, so it is stored first."""
    if not named.startswith("tiny:"):
        return named
    import crossadapt
    from crossadapt.backbones import save_backbone

    return str(save_backbone(crossadapt.load(named), folder / "backbone"))


def main() -> int:
    """Run the comparison; 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--backbone", default="pico-clip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    _record.output_option(parser)
    options = parser.parse_args()
    machine = _record.machine()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render(folder / "in", options.items)
        named, options.backbone = options.backbone, own_backbone(options.backbone, folder)
        whole = command(folder / "in", folder / "whole", options)
        first = finished(whole)
        resumed = command(folder / "in", folder / "killed", options)
        # All of these together are shorter than the whole job, so that each meets it at work.
        share = 1 / options.kills
        waits = [chance.uniform(0.15 * share, share) for _ in range(options.kills)]
        kills = [kill_at(resumed, w * first["seconds"], folder / "killed") for w in waits]
        last = finished(resumed)
        again = finished(resumed)
        ids, vectors = rows(folder / "whole")
        found, others = rows(folder / "killed")
    same_ids = ids == found and len(set(found)) == len(found)
    apart = float(np.abs(vectors - others).max()) if same_ids else float("nan")
    killed = all(kill["exit"] == -signal.SIGKILL for kill in kills)
    document = {
        "items": options.items,
        "backbone": named,
        "uninterrupted": {k: first[k] for k in ("rows", "embedded", "failed", "seconds")},
        "items_per_second": round(first["embedded"] / first["seconds"], 1),
        "kills": kills,
        "every_kill_met_the_job_at_work": killed,
        "last_run": {k: last[k] for k in ("already", "embedded", "rows", "seconds")},
        "second_full_run": {k: again[k] for k in ("already", "embedded", "seconds")},
        "same_ids": same_ids,
        "largest_difference": apart,
        "machine": machine,
    }
    _record.finish(document, options.output)
    right = same_ids and apart <= 1e-6 and again["embedded"] == 0
    return 0 if right and killed and not any(kill["processes_left"] for kill in kills) else 1


if __name__ == "__main__":
    sys.exit(main())
