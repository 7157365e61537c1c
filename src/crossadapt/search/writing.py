"""From decoded pictures and clips to rows: batches for the model, chunks for the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from crossadapt.search.card import attribute_column, frames_column, vector_column
from crossadapt.search.clips import clip_vectors, split_film
from crossadapt.search.collection import Collection
from crossadapt.search.embedder import Embedder
from crossadapt.search.sources import Entry

CHUNK_ROWS = 1024
CHUNK_SECONDS = 30.0
"""A chunk is written when it has so many rows, or is so old: what a kill can cost at most."""


class Writer:
    """Collects pictures, embeds them in batches and writes rows in chunks.

    Args:
        collection: open for writing.
        embedder: with all views that are needed.
        batch_size: pictures in one forward pass.
        written: called with the number of items that have just become safe.
    """

    def __init__(
        self,
        collection: Collection,
        embedder: Embedder,
        batch_size: int,
        written: Callable[[int], None],
    ) -> None:
        self.collection, self.embedder, self.batch_size = collection, embedder, batch_size
        self.written = written
        self.shape = (3, *embedder.backbone.preprocess.size)
        self.stored: dict[str, Entry] = {}
        """Id to the entry it was written with, of new rows; filled by `flush`."""
        self._waiting: list[tuple[Entry, Mapping[str, Any], tuple[str, ...]]] = []
        self._new: list[dict[str, Any]] = []
        self._more: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._since = time.monotonic()

    def add(
        self, entry: Entry, answer: Mapping[str, Any], needs: tuple[str, ...], new: bool
    ) -> None:
        """Take one decoded picture or clip that needs vectors in the views `needs`."""
        self._waiting.append((entry, {**answer, "new": new}, needs))
        if sum(_frames(waiting) for _, waiting, _ in self._waiting) >= self.batch_size:
            self.embed()
        count = len(self._new) + sum(map(len, self._more.values()))
        old = time.monotonic() - self._since > CHUNK_SECONDS
        if count >= CHUNK_ROWS or (count and old):
            self.flush()

    def embed(self) -> None:
        """Run the model over what waits."""
        waiting, self._waiting = self._waiting, []
        pixels = [
            np.frombuffer(a["pixels"], np.uint8).reshape(-1, *self.shape) for _, a, _ in waiting
        ]
        vectors: list[dict[str, Any]] = [{} for _ in waiting]
        for view in dict.fromkeys(view for _, _, needs in waiting for view in needs):
            rows = [row for row, (_, _, needs) in enumerate(waiting) if view in needs]
            clips = [row for row in rows if "times" in waiting[row][1]]
            pictures = [row for row in rows if "times" not in waiting[row][1]]
            if pictures:
                found = self._forward(np.concatenate([pixels[row] for row in pictures]), view)
                for row, vector in zip(pictures, found, strict=True):
                    vectors[row][vector_column(view)] = vector
            for row, (vector, frames) in zip(
                clips, self._clips([pixels[row] for row in clips], view), strict=True
            ):
                vectors[row][vector_column(view)] = vector
                vectors[row][frames_column(view)] = frames.ravel()
                # The small picture of a clip is its most typical frame, by the last view.
                vectors[row]["thumbnail"] = int(np.argmax(frames @ vector))
        for (entry, answer, needs), found in zip(waiting, vectors, strict=True):
            if answer["new"]:
                typical = found.pop("thumbnail", 0)
                self._new.append(_row(entry, answer, typical) | found)
            else:
                found.pop("thumbnail", None)
                self._more.setdefault(needs, []).append({"id": answer["id"], **found})
            self.stored[answer["id"]] = entry

    def _forward(self, pixels: np.ndarray, view: str) -> np.ndarray:
        """Vectors that do not depend on how batches are composed, which a resumed run changes.

        On CPUs (AVX-512 bf16, AMX, fp32) a row was measured to be the same to 2e-7 in any batch.
        GPU libraries choose another kernel for another batch size, in bf16 with differences of
        1e-3; so there every batch has the same shape, the last one filled up with zeros.
        """
        count = len(pixels)
        if self.embedder.backbone.device.type != "cpu" and count < self.batch_size:
            padding = np.zeros((self.batch_size - count, *self.shape), np.uint8)
            pixels = np.concatenate([pixels, padding])
        return self.embedder.pictures(pixels, view)[:count]

    def _clips(
        self, clips: Sequence[np.ndarray], view: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The vector (D,) and the frames (f, D) of clips (f, 3, H, W) of unequal numbers f.

        One by one where batches of another size give other numbers, as in `_forward`.
        """
        alone = self.embedder.backbone.device.type != "cpu"
        size = 1 if alone else max(1, self.batch_size // max(map(len, clips), default=1))
        for start in range(0, len(clips), size):
            some = clips[start : start + size]
            mask = np.zeros((len(some), max(map(len, some))), bool)
            pixels = np.zeros((*mask.shape, *self.shape), np.uint8)
            for place, clip in enumerate(some):
                mask[place, : len(clip)], pixels[place, : len(clip)] = True, clip
            vectors, frames = clip_vectors(self.embedder, pixels, mask, view)
            for clip, vector, found in zip(some, vectors, frames, strict=True):
                yield vector, found[: len(clip)]

    def flush(self) -> None:
        """Write what has been embedded."""
        schema = self.collection.card.schema
        if self._new:
            self.collection.upsert(_table(self._new, schema))
        for rows in self._more.values():
            self.collection.upsert(_table(rows, schema))
        self.written(len(self._new) + sum(map(len, self._more.values())))
        self._new, self._more, self._since = [], {}, time.monotonic()

    def update(self, changed: Iterable[tuple[str, Entry]], names: Sequence[str]) -> int:
        """Write captions, attributes and place of items whose vectors stay; how many."""
        schema = self.collection.card.schema
        rows = [{"id": id, **_described(entry, names)} for id, entry in changed]
        for start in range(0, len(rows), CHUNK_ROWS):
            self.collection.upsert(_table(rows[start : start + CHUNK_ROWS], schema))
        return len(rows)


def _described(entry: Entry, names: Iterable[str]) -> dict[str, Any]:
    return {
        "item": entry.item,
        "texts": list(entry.texts),
        "group": entry.group,
        "modified": entry.modified,
        **{attribute_column(name): entry.attributes.get(name) for name in names},
    }


def _frames(answer: Mapping[str, Any]) -> int:
    return len(answer.get("times", (0,)))


def _row(entry: Entry, answer: Mapping[str, Any], typical: int) -> dict[str, Any]:
    """A new row without vectors; `typical` is the frame of a clip that stands for it."""
    clip: dict[str, Any] = {"kind": "image", "duration": 0.0}
    if "times" in answer:
        stills = split_film(answer)
        clip = {
            "kind": "video",
            "duration": answer["duration"],
            "times": answer["times"],
            "stills": stills,
            "thumbnail": stills[typical],
        }
    else:
        clip["thumbnail"] = answer["thumbnail"]
    return {
        **_described(entry, entry.attributes),
        "id": answer["id"],
        **clip,
        "width": answer["width"],
        "height": answer["height"],
        "bytes": answer["bytes"],
        "added": datetime.now(UTC),
    }


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows with the columns that any of them has; attributes not named in a row are null."""
    present = {name for row in rows for name in row}
    columns = {}
    for field in schema:
        if field.name not in present:
            continue
        values = [row.get(field.name) for row in rows]
        if pa.types.is_fixed_size_list(field.type):
            flat = pa.array(np.stack([np.asarray(v, np.float32) for v in values]).ravel())
            columns[field.name] = pa.FixedSizeListArray.from_arrays(flat, field.type.list_size)
        else:
            columns[field.name] = pa.array(values, field.type)
    return pa.table(columns)
