"""Rows to measure on: features of held-out pictures and texts, and their recalls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crossadapt.adapters.companion import pair_scores
from crossadapt.backbones.precision import Precision
from crossadapt.data.manifest import Manifest
from crossadapt.evaluation.protocols import evaluate, evaluate_scores
from crossadapt.tasks.encode import Pixels, encode_images, encode_texts, evaluating

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone
    from crossadapt.evaluation.metrics import RetrievalResult

MOST_PAIRS = 2**20
"""Pairs of validation pictures and texts up to which a companion scores them all."""


class HeldOut:
    """Rows to measure on, tokenised once: `evaluate` as often as you like."""

    def __init__(
        self,
        backbone: Backbone,
        manifest: Manifest,
        pixels: Pixels,
        precision: Precision | None = None,
    ) -> None:
        self.manifest, self.pixels, self.precision = manifest, pixels, precision
        self.tokens = backbone.tokenize(manifest.texts)

    def encode(self, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """Features of the items (N, D) and of the texts (M, D), in the manifest's order."""
        images = encode_images(backbone, self.pixels, precision=self.precision)
        return images, encode_texts(backbone, self.tokens, precision=self.precision)

    def evaluate(self, backbone: Backbone, protocol: str = "pairs") -> RetrievalResult:
        """Retrieval in both directions with whatever adapter is active."""
        return self.score(*self.encode(backbone), protocol)

    def score(self, images: Tensor, texts: Tensor, protocol: str = "pairs") -> RetrievalResult:
        """Retrieval with features that `encode` gave."""
        return evaluate(images, texts, *self.sides(), protocol)

    def score_pairs(
        self, backbone: Backbone, images: Tensor, texts: Tensor, protocol: str = "pairs"
    ) -> RetrievalResult:
        """Retrieval by the active adapter's scores of all pairs, see `companion.pair_scores`."""
        device = next(backbone.model.parameters()).device
        with evaluating(backbone), torch.no_grad():
            found = pair_scores(backbone, images.to(device), texts.to(device)).cpu().numpy()

        def block(text_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
            return found[np.ix_(image_rows, text_rows)].T

        return evaluate_scores(block, *self.sides(), protocol, similarity="pair scores")

    def sides(self) -> tuple[list[str], list[str]]:
        """Group names of the items and of the texts."""
        names = self.manifest.group_names
        return (
            [names[g] for g in self.manifest.item_groups],
            [names[g] for g in self.manifest.groups],
        )


def scores(result: RetrievalResult) -> dict[str, float]:
    """The numbers of an evaluation that a training log shows."""
    return {
        "t2i_r1": result.text_to_image.r1,
        "t2i_r10": result.text_to_image.r10,
        "i2t_r1": result.image_to_text.r1,
        "i2t_r10": result.image_to_text.r10,
        "rsum": result.rsum,
    }
