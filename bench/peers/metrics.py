"""The peers' side of bench/metrics.py: recall as other tools compute it from the same features.

python bench/peers/metrics.py FOLDER clip_benchmark|torchmetrics|clip4clip

*clip_benchmark* is its ``evaluate`` with a model that looks the features up, its batch size of 64.
*torchmetrics* is ``RetrievalRecall`` fed with all pairs: one cutoff of one direction, since it
sorts all pairs anew for each of the six and takes minutes for them. *clip4clip* is the way of its
evaluation for several captions per item, with the same calls, written anew: the whole score matrix,
padded to the most captions of an item and sorted twice for the ranks of the captions; for the
items the best score per pair of items, every row sorted and the places of its own score looked up.
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
    """Recall at the last cutoff, text to image."""
    import torch
    from torch.nn.functional import normalize
    from torchmetrics.retrieval import RetrievalRecall

    scores = normalize(torch.from_numpy(texts)) @ normalize(torch.from_numpy(images)).T
    own = torch.from_numpy(owners)[:, None] == torch.arange(len(images))
    queries = torch.arange(len(scores))[:, None].expand(scores.shape)
    metric = RetrievalRecall(top_k=CUTOFFS[-1])
    metric.update(scores.flatten(), own.flatten(), queries.flatten())
    return {f"text_to_image.r{CUTOFFS[-1]}": 100 * float(metric.compute())}


def clip4clip(images: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Every score of every text ranked by sorting twice; every image's best texts sorted once."""
    import torch
    from torch.nn.functional import normalize, pad

    scores = normalize(torch.from_numpy(texts)) @ normalize(torch.from_numpy(images)).T
    by_owner = torch.from_numpy(np.argsort(owners, kind="stable"))
    counts = torch.from_numpy(np.bincount(owners, minlength=len(images)))
    most = int(counts.max())
    parts = scores[by_owner].split(counts.tolist())
    padded = torch.stack(
        [pad(part, (0, 0, 0, most - len(part)), value=-torch.inf) for part in parts]
    )
    del scores, parts
    order = padded.permute(1, 0, 2).argsort(dim=-1, descending=True)
    places = order.argsort(dim=-1).diagonal(dim1=1, dim2=2)
    there = ~padded.diagonal(dim1=0, dim2=2).isinf()
    del order
    best = padded.amax(dim=1).T.numpy()
    ordered = np.sort(-best, axis=1)
    own = -np.diag(best)[:, None]
    found = {}
    for direction, ranks in (
        ("text_to_image", 1 + places[there].numpy()),
        ("image_to_text", 1 + np.where(ordered == own)[1]),
    ):
        found |= {f"{direction}.r{k}": 100 * float(np.mean(ranks <= k)) for k in CUTOFFS}
        found[f"{direction}.median_rank"] = float(np.median(ranks))
        found[f"{direction}.mean_rank"] = float(ranks.mean())
    return found


WAYS = {"clip_benchmark": clip_benchmark, "torchmetrics": torchmetrics, "clip4clip": clip4clip}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    names = ("images", "texts", "owners")
    loaded = [np.load(folder / f"{name}.npy") for name in names]
    serve(lambda: WAYS[sys.argv[2]](*loaded))
