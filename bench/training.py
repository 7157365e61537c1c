"""Training: Cross-Modal Adapter in our loop, beside full fine-tuning and LoRA elsewhere.

    python bench/training.py [--output FILE] [--rounds 5] [--pairs 128] [--smoke]

CLIP ViT-B/32 with random weights, batches of 32 pairs, captions of 8 to 15 tokens. A round is one
epoch over the same pairs, prepared in memory. Peak memory is each process's own greatest resident
size, the interpreter and its libraries included: nothing is subtracted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _pairs
import _peers
import _products
import _record
from _sides import Side, alternate, claim

NAMES = ("crossadapt", "full fine-tuning", "LoRA", "LoRA, bf16")
CACHED, PLAIN = "prefix cached", "not cached"


def speeds(rounds: list[dict[str, float]]) -> list[float]:
    """Pairs per second of each round."""
    return [found["count"] / found["seconds"] for found in rounds]


def step_claims(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Acceptance lines 1 and 2, all sides in turn."""
    where, peers = str(folder), _peers.python()
    sides = [
        Side(NAMES[0], ["ours/training.py", where]),
        Side(NAMES[1], ["peers/training_full.py", where], python=peers),
        Side(NAMES[2], ["peers/training_lora.py", where], python=peers),
        Side(NAMES[3], ["peers/training_lora.py", where, "--bf16"], python=peers),
    ]
    found = alternate(sides, rounds)
    for side in sides:
        side.close()
    ours = found[NAMES[0]]
    claims = [
        claim(
            f"training, against {what}",
            speeds(ours),
            speeds(found[name]),
            names=(NAMES[0], name),
            unit="pairs/s",
            at_least=least,
            note=note,
        )
        for name, what, least, note in (
            (NAMES[1], "plain full fine-tuning (fp32, padded to 77)", 8, _BOUND),
            (NAMES[2], "PEFT LoRA in sentence-transformers' trainer", 4, _LORA),
            (NAMES[3], "the same with bf16=True", 1.3, _LORA),
        )
    ]
    memory = [[x["peak_mib"] for x in found[name]] for name in NAMES[:2]]
    claims.insert(
        1,
        claim(
            "peak memory of training, against plain full fine-tuning",
            *memory,
            names=(NAMES[0], NAMES[1]),
            unit="MiB",
            at_most=0.35,
            note="resident size of the whole process.",
            missed=_MEMORY,
        ),
    )
    return claims


_TEXT = _products.Tower(15, 512)
"""The longest caption of a batch: all are padded to it."""
_BOUND = (
    "without weight gradients and padding, and with the last MLP for one token, our step has "
    f"{_products.most_from_less_work(_TEXT, _products.Tower(77, 512)):.1f} times fewer "
    "multiplications; the rest is the pace of bf16 products over that of fp32, where the processor "
    "has them"
)
_PREFIX = (
    "the second epoch of a run of two; opening the cache is part of the first. In products "
    f"alone the ratio is {_products.most_from_prefix(_TEXT, 4):.2f}: four layers remain, forward "
    "and back, of which the lowest needs no gradient of its attention and the last one has the "
    "pooled token alone in its MLP. Batches, loss and update are less than 1 % of a cached step"
)
_MEMORY = (
    "20.3 MiB a picture are kept for the backward pass, 650 of a batch (the guide to training says "
    "what was tried to keep less); the rest is weights, the interpreter and PyTorch, which both "
    "sides have."
)
_LORA = "their collator prepares pictures and texts in every step; ours are prepared before"


def prefix_claims(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Acceptance line 3: the same run with and without its prefix cache."""
    words = ["ours/training.py", str(folder), "--layers", "4"]
    sides = [Side(CACHED, words), Side(PLAIN, [*words, "--plain"])]
    found = alternate(sides, rounds)
    for side in sides:
        side.close()
    return [
        claim(
            "epochs after the first, adapters in the last 4 layers",
            speeds(found[CACHED]),
            speeds(found[PLAIN]),
            names=(CACHED, PLAIN),
            unit="pairs/s",
            at_least=2.5,
            note=_PREFIX,
        )
    ]


def floor() -> dict[str, Any]:
    """Pairs/s of the bare products of our step, in the number format that a run here would have."""
    from crossadapt.backbones.precision import choose_precision

    precision = choose_precision().name
    shapes = [s for tower in (_products.VISION, _TEXT) for s in _products.step(tower, 12)]
    return {
        "what": f"bare matrix products of a step, forward and to the inputs, {precision}",
        "value": round(_products.pace(shapes, 32, precision), 1),
        "unit": "pairs/s",
    }


def main() -> None:
    """Run all sides and print the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    _record.output_option(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--smoke", action="store_true", help="one round of one batch")
    parser.add_argument("--only", choices=["steps", "prefix"], help="one part of it")
    arguments = parser.parse_args()
    rounds, pairs = (1, 32) if arguments.smoke else (arguments.rounds, arguments.pairs)
    machine = _record.machine()
    claims: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        _pairs.prepare(Path(folder), pairs)
        os.environ["CROSSADAPT_CACHE"] = str(Path(folder) / "cache")
        if arguments.only != "prefix":
            claims += step_claims(Path(folder), rounds)
        if arguments.only != "steps":
            claims += prefix_claims(Path(folder), rounds)
    document = {
        "machine": machine,
        "command": " ".join(["python", "bench/training.py", *sys.argv[1:]]),
        "versions": {
            **{name: version(name) for name in ("torch", "transformers")},
            "peers": [x for x in _peers.REQUIREMENTS.read_text().splitlines() if "==" in x],
        },
        "pairs": pairs,
        "claims": claims,
        "floor": [floor()],
    }
    _record.finish(document, arguments.output)


if __name__ == "__main__":
    main()
