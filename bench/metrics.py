"""Metrics: `evaluate` against the bare product, CLIP_benchmark, torchmetrics and CLIP4Clip's way.

    python bench/metrics.py [--rounds 5] [--smoke] [--output FILE]

The size of COCO's test split: 5,000 images, 25,000 captions, 512 numbers each. Ours computes every
metric of both directions; the peers only what they offer. The features are random with a signal
that puts the own image first for a part of the captions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import _peers
import _record
from _sides import Side, alternate, claim

SIZES = {"images": 5000, "captions": 5, "dim": 512}
SMOKE = {"images": 300, "captions": 5, "dim": 64}
PEERS = {
    "clip_benchmark": "CLIP_benchmark's recall",
    "torchmetrics": "torchmetrics' recall at 10, text to image only",
    "clip4clip": "CLIP4Clip's way, the full matrix sorted",
}
BOUND = (
    "Every score is compared four times, with two thresholds of its row and two of its column: "
    "a fifth of the product, since numpy compares some two thousand million numbers a second and "
    "core. Unit rows, own pairs and undecided pairs are a seventh. Each thread multiplies and "
    "counts tiles of its own; product and counting in turn, each by all threads, took 1.65 and "
    "1.60 times the bare product in two runs of twelve turns where this took 1.30 and 1.35. "
    "Tried: tiles of 2,560 columns (their comparisons take half as long again), tiles of 256 and "
    "512 rows (the product in more calls). Not built: thresholds folded into the product as one "
    "more column (a comparison with one number is no faster in rows of 5,000), and a first pass "
    "in bfloat16, whose error bound leaves a hundred times as many pairs undecided."
)
"""Where the time beside the product goes, profiled with one thread."""
PRODUCT = "Bound by the product, which all sides make: see the first line."
SAME = 0.05
"""Points of recall: others round scores otherwise and break ties by place."""


def inputs(folder: Path, images: int, captions: int, dim: int) -> None:
    """Features and owners as files."""
    random = np.random.default_rng(0)
    pictures = random.standard_normal((images, dim), np.float32)
    owners = random.permutation(np.repeat(np.arange(images), captions))
    texts = random.standard_normal((len(owners), dim), np.float32) + 0.15 * pictures[owners]
    np.save(folder / "images.npy", pictures)
    np.save(folder / "texts.npy", texts.astype(np.float32))
    np.save(folder / "owners.npy", owners)


def seconds(found: list[dict[str, float]], name: str = "seconds") -> list[float]:
    """One figure of every round."""
    return [answer[name] for answer in found]


def agreement(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What each side computed, and the largest difference to ours in what means the same."""
    ours = found["ours"][0]
    result: dict[str, Any] = {}
    for name, answers in found.items():
        shown = {key: round(value, 4) for key, value in answers[0].items() if "." in key}
        # Only text to image means the same everywhere: an image has several captions, and
        # CLIP4Clip's way takes the captions of each as one.
        same = [key for key in shown if name == "clip_benchmark" or key.startswith("text_to")]
        same = [key for key in same if key.split(".")[1] in ("r1", "r5", "r10")]
        apart = max(abs(shown[key] - ours[key]) for key in same)
        result[name] = {"found": shown, "largest_difference": round(apart, 4)}
    return result


def main() -> int:
    """Make inputs, run the sides in turn, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--no-peers", action="store_true", help="only the bare product")
    _record.output_option(parser)
    options = parser.parse_args()
    machine = _record.machine()
    sizes, rounds = (SMOKE, 1) if options.smoke else (SIZES, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        inputs(Path(folder), **sizes)
        sides = [Side(way, ["ours/metrics.py", folder, way]) for way in ("ours", "bare")]
        near = alternate(sides, rounds)
        # A peer takes a minute: its first round is no colder than the others.
        peers = []
        if not options.no_peers:
            python = _peers.python()
            peers = [Side(way, ["peers/metrics.py", folder, way], python=python) for way in PEERS]
        far = alternate([sides[0], *peers], rounds, warm_up=0)
        for side in [*sides, *peers]:
            side.close()
    images, texts = sizes["images"], sizes["images"] * sizes["captions"]
    size = f"{images:,} images, {texts:,} captions, {sizes['dim']} numbers"
    bare = seconds(near["bare"])
    claims = [
        claim(
            f"all metrics both ways ({size}) against the bare float32 product",
            seconds(near["ours"]), bare, names=("ours", "bare product"), unit="s", at_most=1.25,
            note="The product writes into memory that is there already.", missed=BOUND,
        ),
        claim(
            "the same: peak memory against 1 GiB", seconds(near["ours"], "peak_mib"),
            [1024.0] * rounds, names=("ours", "limit"), unit="MiB", at_most=1.0,
        ),
    ]  # fmt: skip
    claims += [
        claim(
            f"the same against {PEERS[name]}",
            seconds(far[name]), seconds(far["ours"]), names=(name, "ours"), unit="s", at_least=20,
            note=f"{name} held {max(seconds(far[name], 'peak_mib')):,.0f} MiB.", missed=PRODUCT,
        )
        for name in PEERS if name in far
    ]  # fmt: skip
    flops = 2 * images * texts * sizes["dim"]
    document = {
        "command": " ".join(["python bench/metrics.py", *(["--no-peers"] * options.no_peers)]),
        "machine": machine,
        "versions": {"numpy": np.__version__, "peers": _peers.REQUIREMENTS.name},
        "claims": claims,
        "floor": [
            {
                "what": "bare float32 product",
                "value": round(float(np.median(bare)), 4),
                "unit": "s",
            },
            {
                "what": "its rate",
                "value": round(flops / float(np.median(bare)) / 1e9, 1),
                "unit": "GFLOP/s",
            },
        ],
        "agreement": agreement(far),
    }
    _record.finish(document, options.output)
    same = all(part["largest_difference"] <= SAME for part in document["agreement"].values())
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
