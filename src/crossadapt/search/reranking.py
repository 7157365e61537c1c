"""The second stage of a search: the fusion tower judges the pairs of the query and its first hits.

The pictures are read again from where they were indexed, only as long as they are unchanged, so a
query costs one reading and one run of the vision tower for each hit that is judged. Of a clip the
frame is judged that the result shows: the one most like the query.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from crossadapt.errors import UserError
from crossadapt.search.query_picture import LIMITS, prepared_pixels

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from PIL import Image

    from crossadapt.backbones.hf import HFBackbone
    from crossadapt.backbones.precision import Precision
    from crossadapt.search.collection import Collection
    from crossadapt.search.query import Hit
    from crossadapt.search.request import Prepared
    from crossadapt.search.server.originals import Originals

_TOGETHER = 8
"""Pictures judged in one go; between them others may use the model."""


class Judge(Protocol):
    """What re-ranking needs of an embedder."""

    @property
    def backbone(self) -> HFBackbone:
        """The model."""
        ...

    @property
    def precision(self) -> Precision:
        """Its number format."""
        ...

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A picture as the model sees it, uint8 (3, H, W)."""
        ...

    def alone(self, view: str) -> AbstractContextManager[HFBackbone]:
        """The backbone with the adapter of a view, and nobody else's."""
        ...


class Reranker:
    """Judges hits of one collection.

    Args:
        collection: open.
        embedder: its own, with a backbone that has a fusion tower.
        originals: opens the originals; a new one unless given.
        stopped: asked between pictures whether nobody waits for the answer any more.

    Raises:
        UserError: the backbone has no fusion tower.
    """

    def __init__(
        self,
        collection: Collection,
        embedder: Judge,
        *,
        originals: Originals | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        from crossadapt.search.server.originals import Originals
        from crossadapt.tasks.matching import fused

        fused(embedder.backbone, "re-ranking")
        self.collection, self.embedder, self.stopped = collection, embedder, stopped
        self._originals = originals or Originals()

    def rerank(self, prepared: Prepared, hits: Sequence[Hit]) -> tuple[list[Hit], float, list[str]]:
        """The hits in the order of their match logits, the seconds it took, and notes.

        Hits whose original cannot be read keep their order behind the others; their `match` stays
        None.

        Raises:
            TimeoutError: nobody waits any more.
        """
        began = time.perf_counter()
        found, left = [], []
        for start in range(0, len(hits), _TOGETHER):
            seen = [(hit, self._pixels(hit)) for hit in hits[start : start + _TOGETHER]]
            readable = [(hit, pixels) for hit, pixels in seen if pixels is not None]
            left += [hit for hit, pixels in seen if pixels is None]
            if readable:
                pixels = np.concatenate([pixels for _, pixels in readable])
                logits = self._judge(prepared.query.text, pixels, prepared.view)
                for (hit, _), logit in zip(readable, logits, strict=True):
                    hit.match = float(logit)
                    found.append(hit)
        ordered = [*sorted(found, key=lambda hit: -(hit.match or 0.0)), *left]
        for number, hit in enumerate(ordered, start=1):
            hit.rank = number
        notes = []
        if left:
            notes.append(f"{len(left)} of {len(hits)} hits could not be judged: their originals "
                         "are gone or have changed")  # fmt: skip
        return ordered, time.perf_counter() - began, notes

    def _judge(self, text: str, pixels: np.ndarray, view: str) -> np.ndarray:
        """Match logits (N,) of one text with prepared pictures uint8 (N, 3, H, W)."""
        from crossadapt.tasks.rerank import PairMatcher

        with self.embedder.alone(view) as backbone:
            tokens = backbone.tokenize([text])
            matcher = PairMatcher(backbone, pixels, tokens, self.embedder.precision)
            return matcher(np.arange(len(pixels)), np.zeros(len(pixels), np.int64))

    def _pixels(self, hit: Hit) -> np.ndarray | None:
        """The prepared picture of a hit, uint8 (1, 3, H, W); None when there is none to be had."""
        from crossadapt.data.decoding import Unreadable
        from crossadapt.search.server.failures import Failure

        if self.stopped():
            raise TimeoutError("nobody waits for this re-ranking")
        [row] = self.collection.get([hit.id], ["id", "bytes"]).to_pylist() or [{"bytes": None}]
        try:
            original = self._originals.open(hit.id, hit.item, row["bytes"])
            with original.file as file:
                if hit.kind == "video":
                    return self._frame(hit)
                file.seek(original.start)
                content = file.read(original.size)
            return prepared_pixels(content, LIMITS, self.embedder.prepare, hit.item)
        except (Failure, Unreadable, UserError, OSError):
            return None

    def _frame(self, hit: Hit) -> np.ndarray | None:
        """The frame of a clip at the moment the result shows."""
        from crossadapt.data.video import read_frames
        from crossadapt.search.server.originals import place

        moment = hit.start
        if moment is None:
            return None

        def shown(times: np.ndarray, duration: float) -> np.ndarray:
            return np.array([np.abs(times - moment).argmin()])

        path, _ = place(hit.item)
        frames = read_frames(Path(path), shown, max_pixels=LIMITS.max_pixels)
        return np.stack([self.embedder.prepare(image) for _, image in frames])
