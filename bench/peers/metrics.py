"""The peers' side of bench/metrics.py: recall as other tools compute it from the same features.

python bench/peers/metrics.py FOLDER clip_benchmark|torchmetrics|sorted

*clip_benchmark* is its ``evaluate`` with a model that looks the features up, its batch size of 64.
*torchmetrics* is ``RetrievalRecall`` per cutoff and direction, fed with all pairs. *sorted* is the
way of the CLIP4Clip evaluation as its paper's protocol has it, written anew: the whole score
matrix, every row sorted, the place of the own item looked up; captions of one image count as one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _sides import serve

CUTOFFS = (1, 5, 10)


def clip_benchmark(images: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Its own loop; the model returns rows of the features."""
    import torch
    from clip_benchmark.metrics import zeroshot_retrieval

    class Model:
        def encode_image(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(images)[rows]

        def encode_text(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(texts)[rows]

    captions = [np.flatnonzero(owners == image).tolist() for image in range(len(images))]
    batches = [
        (torch.arange(at, min(at + 64, len(images))), captions[at : at + 64])
        for at in range(0, len(images), 64)
    ]
    found = zeroshot_retrieval.evaluate(
        Model(), batches, torch.tensor, "cpu", amp=False, recall_k_list=list(CUTOFFS)
    )
    return {
        f"{ours}.r{k}": 100 * found[f"{theirs}_retrieval_recall@{k}"]
        for ours, theirs in (("text_to_image", "image"), ("image_to_text", "text"))
        for k in CUTOFFS
    }


def torchmetrics(images: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Recall of information retrieval: of several own captions, the share that is found."""
    import torch
    from torch.nn.functional import normalize
    from torchmetrics.retrieval import RetrievalRecall

    scores = normalize(torch.from_numpy(texts)) @ normalize(torch.from_numpy(images)).T
    own = torch.from_numpy(owners)[:, None] == torch.arange(len(images))
    found = {}
    for direction, preds, target in (
        ("text_to_image", scores, own),
        ("image_to_text", scores.T.contiguous(), own.T.contiguous()),
    ):
        queries = torch.arange(len(preds))[:, None].expand(preds.shape)
        for k in CUTOFFS:
            metric = RetrievalRecall(top_k=k)
            metric.update(preds.flatten(), target.flatten(), queries.flatten())
            found[f"{direction}.r{k}"] = 100 * float(metric.compute())
    return found


def in_sorted(images: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """The whole matrix, sorted."""

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    scores = unit(texts) @ unit(images).T
    by_owner = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[by_owner], np.arange(len(images)))
    best = np.maximum.reduceat(scores[by_owner], starts, axis=0).T
    found = {}
    for direction, matrix, right in (
        ("text_to_image", scores, owners),
        ("image_to_text", best, np.arange(len(images))),
    ):
        order = np.argsort(-matrix, axis=1)
        places = 1 + np.where(order == right[:, None])[1]
        found |= {f"{direction}.r{k}": 100 * float(np.mean(places <= k)) for k in CUTOFFS}
        found[f"{direction}.median_rank"] = float(np.median(places))
        found[f"{direction}.mean_rank"] = float(places.mean())
    return found


WAYS = {"clip_benchmark": clip_benchmark, "torchmetrics": torchmetrics, "sorted": in_sorted}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    names = ("images", "texts", "owners")
    loaded = [np.load(folder / f"{name}.npy") for name in names]
    serve(lambda: WAYS[sys.argv[2]](*loaded))
