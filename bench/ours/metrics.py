"""Our side of bench/metrics.py: ``evaluate`` as a user calls it, or the bare product.

python bench/ours/metrics.py FOLDER ours|bare
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _sides import serve


def main(folder: Path, way: str) -> None:
    """Load the inputs, then measure once per line."""
    images, texts = np.load(folder / "images.npy"), np.load(folder / "texts.npy")
    owners = np.load(folder / "owners.npy")
    if way == "bare":
        held = np.zeros((len(texts), len(images)), np.float32)

        def product() -> None:
            np.matmul(texts, images.T, out=held)

        serve(product)
        return
    from crossadapt.evaluation import evaluate

    groups = np.arange(len(images))

    def ours() -> dict[str, float]:
        found = evaluate(images, texts, groups, owners)
        return {
            f"{direction}.{name}": found.metric(f"{direction}.{name}")
            for direction in ("text_to_image", "image_to_text")
            for name in ("r1", "r5", "r10", "median_rank", "mean_rank")
        }

    serve(ours)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
