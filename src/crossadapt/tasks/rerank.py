"""Two-stage retrieval: cosines choose a shortlist, the fusion tower judges its pairs.

As in BLIP (Li et al. 2022, arXiv 2201.12086) and UniAdapter (Lu et al. 2023, arXiv 2302.06605): for
each query the k nearest of the gallery get ``match logit + weight * cosine`` as score, everything
else `OUTSIDE`, so that whatever the shortlist misses stays missed. With k at least the size of the
gallery every pair is judged. The released code of UniAdapter has weight 0, that of BLIP 1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crossadapt.backbones.base import TokenBatch
from crossadapt.backbones.blip import MATCH
from crossadapt.backbones.precision import Precision
from crossadapt.errors import UserError
from crossadapt.evaluation.metrics import RetrievalResult
from crossadapt.evaluation.protocols import Scores, evaluate_scores
from crossadapt.tasks.encode import Pixels, cut, evaluating, stack_pixels, where
from crossadapt.tasks.matching import fused

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone
    from crossadapt.tasks.held_out import HeldOut

OUTSIDE = -100.0
"""Score of what is not on the shortlist."""
_PICTURES = 32
_PAIRS = 128


@dataclass(frozen=True)
class Rerank:
    """How the second stage works."""

    k: int
    """Length of the shortlist."""
    weight: float = 0.0
    """Of the cosine, beside the match logit."""

    def __post_init__(self) -> None:
        """Refuse a shortlist without room and a weight that is no number."""
        if self.k < 1:
            raise UserError(f"a shortlist of {self.k}", where="rerank", fix="give 1 or more")
        if not np.isfinite(self.weight):
            raise UserError(
                f"the weight is {self.weight}", where="rerank_weight", fix="give 0 or 1"
            )


@dataclass(frozen=True)
class Reranked:
    """What the second stage made of a split, and what it cost."""

    result: RetrievalResult
    rerank: Rerank
    pairs: int
    """Pairs that the fusion tower judged."""
    seconds: float
    """Time of the second stage over all queries of both directions."""

    @property
    def ms_per_query(self) -> float:
        """Milliseconds that the second stage adds to a query."""
        return 1000 * self.seconds / (self.result.images + self.result.texts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self.rerank), "pairs": self.pairs, "ms_per_query": self.ms_per_query,
                "result": self.result.to_dict()}  # fmt: skip


class PairMatcher:
    """Match logits of pictures and texts of a split, with whatever adapter is active.

    Args:
        backbone: with a fusion tower.
        pixels: prepared pictures.
        tokens: the texts.
        precision: number format; chosen from the hardware when None.

    Raises:
        UserError: the backbone has no fusion tower.
    """

    def __init__(
        self,
        backbone: Backbone,
        pixels: Pixels,
        tokens: TokenBatch,
        precision: Precision | None = None,
    ) -> None:
        self.backbone = fused(backbone, "re-ranking")
        self.pixels, self.texts = pixels, tokens
        self.device, self.precision = where(backbone, precision)
        self.pairs = 0

    def __call__(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Logits (P,) of the pairs of pictures images[p] and texts texts[p].

        Every picture is encoded once per call, however many texts it meets.
        """
        found = np.empty(len(images), np.float32)
        order = np.argsort(images, kind="stable")
        distinct, starts = np.unique(images[order], return_index=True)
        edges = np.append(starts, len(order))
        with evaluating(self.backbone), torch.inference_mode():
            for first in range(0, len(distinct), _PICTURES):
                last = min(first + _PICTURES, len(distinct))
                seen = self._tokens(distinct[first:last])
                rows = order[edges[first] : edges[last]]
                which = np.searchsorted(distinct[first:last], images[rows])
                found[rows] = self._judge(seen, which, texts[rows])
        self.pairs += len(images)
        return found

    def _tokens(self, pictures: np.ndarray) -> Tensor:
        pixels = stack_pixels(self.pixels, pictures).to(self.device)
        with self.precision.autocast():
            return self.backbone.encode_image_tokens(self.backbone.preprocess.normalise(pixels))

    def _judge(self, seen: Tensor, which: np.ndarray, texts: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(which), _PAIRS):
            rows = torch.from_numpy(texts[start : start + _PAIRS])
            batch = cut(TokenBatch(self.texts.ids[rows], self.texts.mask[rows]))
            pictures = seen[torch.from_numpy(which[start : start + _PAIRS]).to(seen.device)]
            with self.precision.autocast():
                logits = self.backbone.match(
                    batch.ids.to(self.device), batch.mask.to(self.device), pictures
                )
            parts.append(logits[:, MATCH].float().cpu().numpy())
        return np.concatenate(parts)


def shortlist(cosines: np.ndarray, k: int) -> np.ndarray:
    """Columns (n, min(k, m)) of the largest cosines of each row (n, m), best first."""
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def two_stage(
    images: np.ndarray, texts: np.ndarray, matcher: PairMatcher, rerank: Rerank
) -> dict[str, Scores]:
    """The scores of both directions, each with its own shortlists.

    Args:
        images: unit features (N, D).
        texts: unit features (M, D).
        matcher: over the same pictures and texts.
        rerank: length and weight.
    """

    def judged(cosines: np.ndarray, pair: Any) -> np.ndarray:
        chosen = shortlist(cosines, rerank.k)
        rows = np.repeat(np.arange(len(chosen)), chosen.shape[1])
        columns = chosen.reshape(-1)
        logits = pair(rows, columns)
        scores = np.full(cosines.shape, OUTSIDE, np.float32)
        scores[rows, columns] = logits + rerank.weight * cosines[rows, columns]
        return scores

    def to_images(text_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        cosines = texts[text_rows] @ images[image_rows].T
        return judged(cosines, lambda t, i: matcher(image_rows[i], text_rows[t]))

    def to_texts(text_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        cosines = images[image_rows] @ texts[text_rows].T
        return judged(cosines, lambda i, t: matcher(image_rows[i], text_rows[t])).T

    return {"text_to_image": to_images, "image_to_text": to_texts}


def reranked(
    backbone: Backbone,
    held_out: HeldOut,
    images: Tensor,
    texts: Tensor,
    rerank: Rerank,
    protocol: str = "pairs",
) -> Reranked:
    """Measure both stages on held-out rows, with whatever adapter is active.

    Args:
        backbone: with a fusion tower.
        held_out: rows and pictures.
        images: unit features (N, D) of the items, as `held_out.encode` gives them.
        texts: unit features (M, D) of the texts.
        rerank: length of the shortlist and weight of the cosine.
        protocol: name of the evaluation rule.
    """
    matcher = PairMatcher(backbone, held_out.pixels, held_out.tokens, held_out.precision)
    scores: Mapping[str, Scores] = two_stage(images.numpy(), texts.numpy(), matcher, rerank)
    began = time.perf_counter()
    result = evaluate_scores(
        scores, *held_out.sides(), protocol, similarity=f"match logit of the {rerank.k} nearest"
    )
    return Reranked(result, rerank, matcher.pairs, time.perf_counter() - began)
