"""Our side of bench/training.py: ``fit``, which `crossadapt train` calls, on pairs in memory.

    python bench/ours/training.py FOLDER [--layers N] [--plain]

A round is one epoch: batches, steps, and the checkpoint at its end. With ``--layers`` the
adapters stand in the last N layers; then ``--plain`` leaves the prefix cache out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import crossadapt
from _sides import serve
from crossadapt import CrossModalAdapterConfig
from crossadapt.backbones.lean import hold_products_in_bf16
from crossadapt.backbones.precision import choose_precision
from crossadapt.data.manifest import Manifest
from crossadapt.tasks.retrieval import RetrievalTask
from crossadapt.training.config import make_recipe
from crossadapt.training.events import read_events
from crossadapt.training.loop import fit


def main() -> None:
    """Prepare as `crossadapt train` does and serve epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    captions = json.loads((arguments.folder / "captions.json").read_text())
    pixels = np.load(arguments.folder / "pixels.npy")
    rows = Manifest.from_rows(
        {"item": f"openmoji:{i}", "text": text, "split": "train"} for i, text in enumerate(captions)
    )
    backbone = crossadapt.load(str(arguments.folder / "model"))
    crossadapt.attach(backbone, CrossModalAdapterConfig(layers=arguments.layers))
    precision = choose_precision()
    hold_products_in_bf16(backbone, precision)
    task = RetrievalTask(backbone, rows, pixels, batch_size=32, precision=precision)
    turn = itertools.count()

    def epochs(count: int) -> dict[str, float]:
        recipe = make_recipe(
            "default", "cross-modal-adapter", batch_size=32, epochs=count, guard=0, patience=0
        )
        output = arguments.folder / f"run-{arguments.layers}-{arguments.plain}-{next(turn)}"
        cached = not arguments.plain
        fit(
            backbone,
            task,
            recipe,
            output=output,
            precision=precision,
            quiet=True,
            prefix_cache=cached,
        )
        if count == 1:
            return {"count": task.steps_per_epoch() * 32}
        # The epochs after the first: from its evaluation to the end.
        events = read_events(output / "events.jsonl")
        first = next(event["time"] for event in events if event["event"] == "eval")
        seconds = events[-1]["time"] - first
        return {"count": task.steps_per_epoch() * 32 * (count - 1), "seconds": seconds}

    serve(lambda: epochs(2 if arguments.layers else 1))


if __name__ == "__main__":
    main()
