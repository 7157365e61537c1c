"""Cost of growth: embedding, metrics and search at 1x, 4x and 16x size.

    python bench/growth.py [--rounds 5] [--smoke] [--output FILE]

Every cost is measured at the three sizes in turn, several rounds. The slope is that of log seconds
over log size by least squares, with the 95 % t interval over all rounds. Each cost has a slope that
it should not exceed, and a reason: 1, or 2 where both sides of a product grow.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import _record
import search
from _sides import claim
from crossadapt.evaluation import evaluate
from crossadapt.search.card import Card
from crossadapt.search.collection import Collections

SCALES = (1, 4, 16)
DIM = 512
SLACK = 1.1
"""A measured slope may exceed the expected one by so much: caches are left behind as sizes grow."""
T_95 = {1: 12.706, 4: 2.776, 7: 2.365, 10: 2.228, 13: 2.160, 16: 2.120, 19: 2.093, 22: 2.074}
"""97.5 % quantile of Student's t for 3 r - 2 degrees of freedom, r rounds."""


@dataclass(frozen=True)
class Cost:
    """Something that takes longer as it grows."""

    what: str
    unit_size: str
    works: list[Callable[[], Any]]
    """One for each of `SCALES`."""
    expected: float
    why: str
    repeats: int = 1


def embedding(unit: int) -> list[Cost]:
    """pico-clip on pictures that are prepared, and on short texts."""
    from crossadapt.search.embedder import Embedder

    embedder = Embedder.open("pico-clip")
    side = embedder.prepare(_picture()).shape
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(unit * SCALES[-1], *side), dtype=np.uint8)
    texts = [f"a photo of thing number {number}" for number in range(unit * SCALES[-1])]
    why = "each item is one pass of the model"
    return [
        Cost(
            "embed pictures", f"{unit:,} pictures",
            [lambda n=n: embedder.pictures(pixels[: unit * n]) for n in SCALES], 1, why,
        ),
        Cost(
            "embed texts", f"{unit:,} texts",
            [lambda n=n: embedder.texts(texts[: unit * n]) for n in SCALES], 1, why,
        ),
    ]  # fmt: skip


def _picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (80, 64))


def metrics(unit: int) -> list[Cost]:
    """All metrics both ways, with a fixed gallery and with both sides growing."""
    random = np.random.default_rng(1)
    images = random.standard_normal((unit * SCALES[-1], DIM), np.float32)
    owners = np.repeat(np.arange(len(images)), 5)
    texts = random.standard_normal((len(owners), DIM), np.float32) + 0.15 * images[owners]
    fixed = 2 * unit
    some = np.resize(np.flatnonzero(owners < fixed), 10 * unit * SCALES[-1])
    # Captions of the fixed gallery, moved a little, so that none is twice the same.
    more = texts[some] + random.standard_normal((len(some), DIM), np.float32) * np.float32(0.01)

    def whole(n: int) -> Any:
        groups = np.arange(unit * n)
        return evaluate(images[: unit * n], texts[: 5 * unit * n], groups, owners[: 5 * unit * n])

    def half(n: int) -> Any:
        # 10 unit captions are those of the whole gallery once.
        count = 10 * unit * n
        return evaluate(images[:fixed], more[:count], np.arange(fixed), owners[some[:count]])

    return [
        Cost(
            "metrics, captions grow", f"{fixed:,} images, {10 * unit:,} captions",
            [lambda n=n: half(n) for n in SCALES], 1, "every caption meets the same images",
        ),
        Cost(
            "metrics, both grow", f"{unit:,} images, {5 * unit:,} captions",
            [lambda n=n: whole(n) for n in SCALES], 2,
            "every caption meets every image: 16 times the size is 256 times the pairs",
        ),
    ]  # fmt: skip


def searching(folder: Path, unit: int) -> list[Cost]:
    """One query and 64, exactly; one query through an index."""
    home = {False: Collections(folder), True: Collections(folder, exact_limit=0)}
    vectors = search.clustered(unit * SCALES[-1], DIM)
    queries = search.near(vectors, 64)
    for n in SCALES:
        with home[True].create(Card(f"of-{n}", DIM, "synthetic")) as collection:
            for start in range(0, unit * n, 50_000):
                part = vectors[start : min(start + 50_000, unit * n)]
                flat = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), DIM)
                ids = [f"{row:032x}" for row in range(start, start + len(part))]
                collection.upsert(pa.table({"id": ids, "vector_frozen": flat}))
            collection.maintain()

    def ask(n: int, index: bool, asked: np.ndarray) -> Callable[[], Any]:
        collection = home[index].open(f"of-{n}")
        return lambda: collection.search(asked, 10)

    size = f"{unit:,} rows"
    return [
        Cost(
            "search exactly", size, [ask(n, False, queries[0]) for n in SCALES], 1,
            "every row is read once; from 50,000 rows on, its leading coordinates", 9,
        ),
        Cost(
            "search 64 exactly", size, [ask(n, False, queries) for n in SCALES], 1,
            "one product with every row",
        ),
        Cost(
            "search by index", size, [ask(n, True, queries[0]) for n in SCALES], 1,
            "a share of the rows that shrinks as they grow, and a fixed cost per call", 9,
        ),
    ]  # fmt: skip


def measure(costs: list[Cost], rounds: int) -> list[np.ndarray]:
    """Seconds (rounds, scales) of each cost; the first round warms up and is not kept."""
    found = [np.empty((rounds, len(SCALES))) for _ in costs]
    for index in range(-1, rounds):
        for cost, times in zip(costs, found, strict=True):
            for place, work in enumerate(cost.works):
                spent = []
                for _ in range(cost.repeats):
                    start = time.perf_counter()
                    work()
                    spent.append(time.perf_counter() - start)
                if index >= 0:
                    times[index, place] = np.median(spent)
        print(f"round {index + 1} of {rounds}", file=sys.stderr)
    return found


def slope(times: np.ndarray) -> tuple[float, float, float]:
    """Least-squares slope of log seconds over log size, with its interval (low, high)."""
    rounds = len(times)
    x = np.tile(np.log(SCALES), rounds)
    y = np.log(times).ravel()
    moved = x - x.mean()
    found = float(moved @ y / (moved @ moved))
    left = y - y.mean() - found * moved
    freedom = len(x) - 2
    known = max((f for f in T_95 if f <= freedom), default=1)  # the wider one between two
    wide = T_95[known] * float(np.sqrt(left @ left / freedom / (moved @ moved)))
    return found, found - wide, found + wide


def main() -> int:
    """Make the costs, measure them, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round")
    _record.output_option(parser)
    options = parser.parse_args()
    machine = _record.machine()
    rounds = 1 if options.smoke else options.rounds
    units = (2, 20, 300) if options.smoke else (64, 500, 12_500)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CROSSADAPT_CACHE"] = str(Path(folder) / "cache")
        costs = embedding(units[0]) + metrics(units[1]) + searching(Path(folder) / "s", units[2])
        times = measure(costs, rounds)
    curves, claims = [], []
    for cost, seen in zip(costs, times, strict=True):
        found, low, high = slope(seen)
        curves.append({
            "what": cost.what, "unit_size": cost.unit_size, "scales": list(SCALES),
            "seconds": np.median(seen, axis=0).tolist(), "slope": round(found, 3),
            "interval": [round(low, 3), round(high, 3)], "why": cost.why,
        })  # fmt: skip
        each = [slope(row[None])[0] for row in seen]
        claims.append(
            claim(
                f"{cost.what}: slope against the expected one", each, [cost.expected] * rounds,
                names=("measured", "expected"), unit="", at_most=SLACK, note=cost.why + ".",
                missed="Not profiled. The small size may fit into a cache that the large "
                "one has left behind, or "
                "other work ran beside it: see the interval of the slope and the load.",
            )
        )  # fmt: skip
    document = {
        "command": "python bench/growth.py",
        "machine": machine,
        "versions": {"numpy": np.__version__},
        "scales": list(SCALES),
        "claims": claims,
        "floor": [],
        "curves": curves,
    }
    _record.finish(document, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
