"""The second stage of a search: the fusion tower judges the pairs of the query and its first hits.

The pictures are read again from where they were indexed, only as long as they are unchanged, so a
query costs one reading and one run of the vision tower for each hit that is judged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from crossadapt.errors import UserError
from crossadapt.search.query_picture import LIMITS, prepared_pixels

if TYPE_CHECKING:
    from crossadapt.search.collection import Collection
    from crossadapt.search.embedder import Embedder
    from crossadapt.search.query import Hit
    from crossadapt.search.request import Prepared


class Reranker:
    """Judges hits of one collection.

    Args:
        collection: open.
        embedder: its own, with a backbone that has a fusion tower.

    Raises:
        UserError: the backbone has no fusion tower.
    """

    def __init__(self, collection: Collection, embedder: Embedder) -> None:
        from crossadapt.search.server.originals import Originals
        from crossadapt.tasks.matching import fused

        fused(embedder.backbone, "re-ranking")
        self.collection, self.embedder = collection, embedder
        self._originals = Originals()

    def rerank(self, prepared: Prepared, hits: Sequence[Hit]) -> tuple[list[Hit], float, list[str]]:
        """The hits in the order of their match logits, the seconds it took, and notes.

        Hits whose original cannot be read, videos among them, keep their order behind the others;
        their `match` stays None.
        """
        began = time.perf_counter()
        seen = [(hit, self._pixels(hit)) for hit in hits]
        readable = [(hit, pixels) for hit, pixels in seen if pixels is not None]
        if readable:
            pixels = np.concatenate([pixels for _, pixels in readable])
            logits = self._judge(prepared.query.text, pixels, prepared.view)
            for (hit, _), logit in zip(readable, logits, strict=True):
                hit.match = float(logit)
        found = sorted((hit for hit, _ in readable), key=lambda hit: -(hit.match or 0.0))
        left = [hit for hit, pixels in seen if pixels is None]
        ordered = [*found, *left]
        for number, hit in enumerate(ordered, start=1):
            hit.rank = number
        notes = []
        if left:
            notes.append(f"{len(left)} of {len(hits)} hits could not be judged: their originals "
                         "are gone or have changed, or are videos")  # fmt: skip
        return ordered, time.perf_counter() - began, notes

    def _judge(self, text: str, pixels: np.ndarray, view: str) -> np.ndarray:
        """Match logits (N,) of one text with prepared pictures uint8 (N, 3, H, W)."""
        from crossadapt.tasks.rerank import PairMatcher

        with self.embedder.alone(view) as backbone:
            tokens = backbone.tokenize([text])
            matcher = PairMatcher(backbone, pixels, tokens, self.embedder.precision)
            return matcher(np.arange(len(pixels)), np.zeros(len(pixels), np.int64))

    def _pixels(self, hit: Hit) -> np.ndarray | None:
        from crossadapt.search.server.failures import Failure

        if hit.kind != "image":
            return None
        [row] = self.collection.get([hit.id], ["id", "bytes"]).to_pylist() or [{"bytes": None}]
        try:
            original = self._originals.open(hit.id, hit.item, row["bytes"])
            with original.file as file:
                file.seek(original.start)
                content = file.read(original.size)
            return prepared_pixels(content, LIMITS, self.embedder.prepare, hit.item)
        except (Failure, UserError, OSError):
            return None
