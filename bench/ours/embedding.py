"""Our side of bench/embedding.py and bench/variants.py: `embed_files` and the embedder itself.

python bench/ours/embedding.py images|texts|overhead|runtimes MODEL INPUTS.json [OUT.npy]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import _sides
from crossadapt.data import pool
from crossadapt.data.decoding import MAX_PIXELS
from crossadapt.search.card import FROZEN
from crossadapt.search.embedder import Embedder
from crossadapt.search.embedding import embed_files
from crossadapt.search.runtime_sample import first_pictures
from crossadapt.search.runtime_trial import Trial
from crossadapt.search.runtimes import RUNTIMES


def overhead(embedder: Embedder, inputs: list[str]) -> dict[str, float]:
    """Seconds of the same rows by the frozen model and with an adapter, in short turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 3, 224, 224), np.uint8)
    spent = {"frozen": 0.0, "adapter": 0.0}
    for _ in range(4):
        for view in spent:
            start = time.perf_counter()
            embedder.pictures(pixels, view)
            embedder.texts(inputs[:256], view)
            spent[view] += time.perf_counter() - start
    return {**spent, "seconds": sum(spent.values())}


def trial(embedder: Embedder, inputs: list[str]) -> Trial:
    """The frozen view, to be tried on the first pictures."""
    items = ((pool.Task(row, path), None) for row, path in enumerate(inputs[:64]))
    sample = first_pictures(embedder, items, 0, 60.0, MAX_PIXELS)
    return Trial(embedder, FROZEN, lambda: sample)


def runtimes(tried: Trial) -> dict[str, float]:
    """Seconds of the same 32 prepared pictures by every runtime, in short turns.

    ``NAME cosine`` is the least one of the gate's pictures and texts with PyTorch's, ``NAME
    passed`` 1 where the gate lets the runtime through.
    """
    spent = dict.fromkeys(["torch", *RUNTIMES], 0.0)
    for _ in range(2):
        for name in spent:
            spent[name] += tried.seconds(RUNTIMES.get(name), 32)
    gate = {}
    for name, runtime in RUNTIMES.items():
        verdict = tried.verdict(runtime)
        gate[f"{name} cosine"] = min(verdict.cosine_pictures, verdict.cosine_texts)
        gate[f"{name} passed"] = float(verdict.passed)
    return {**spent, **gate, "count": 64.0, "seconds": sum(spent.values())}


def main() -> None:
    """Get ready and serve."""
    part, model, listed, *rest = sys.argv[1:]
    inputs = json.loads(Path(listed).read_text())
    adapters = {"adapter": str(Path(model).parent / "adapter")} if part == "overhead" else {}
    embedder = Embedder.open(model, adapters)
    tried = trial(embedder, inputs) if part == "runtimes" else None

    def work() -> dict[str, float]:
        if tried is not None:
            return runtimes(tried)
        if part == "overhead":
            return overhead(embedder, inputs)
        if part == "images":
            vectors, readable = embed_files(embedder, inputs)
            if not readable.all():
                raise SystemExit("a picture of the bench could not be read")
        else:
            vectors = embedder.texts(inputs)
        if rest:
            np.save(rest[0], vectors)
        return {"count": float(len(inputs))}

    _sides.serve(work)


if __name__ == "__main__":
    main()
