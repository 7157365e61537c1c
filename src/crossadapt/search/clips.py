"""Clips in a collection: one row per clip, with its frames inside it, and the moment a query meets.

The row's vector is the mean of the frames' directions (`mean_pooled`), so a clip is found, counted
and filtered like a picture. The row also holds what finds the moment: ``times`` (seconds),
``stills`` (small JPEGs) and, per view, the unit vectors of its F frames. The best frame of a hit is
the one most like the query, looked up for the hits alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.data.decoding import Unreadable, check_file, message
from crossadapt.data.frame_choice import WHOLE, Sampling
from crossadapt.errors import UserError
from crossadapt.search.card import FROZEN, Card, frames_column
from crossadapt.search.composing import blended
from crossadapt.search.thumbnails import PictureReader, thumbnail

if TYPE_CHECKING:
    from crossadapt.search.collection import Collection
    from crossadapt.search.embedder import Embedder
    from crossadapt.search.query import Hit

FRAMES, SAMPLING = 12, "segments"
"""How clips are looked at unless the collection, an adapter or the user says otherwise."""
RUN_RECORD = "run.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ClipRule:
    """Which frames of a clip a collection keeps; the same for all its clips."""

    frames: int = FRAMES
    """Most frames of a clip."""
    sampling: str = SAMPLING
    """One of `crossadapt.data.frame_choice.SAMPLINGS`."""

    def to_dict(self) -> dict[str, Any]:
        """As the card keeps it."""
        return asdict(self)


def clip_rule(
    card: Card | None, adapters: Iterable[Path], frames: int | None, sampling: str | None
) -> ClipRule:
    """What the collection has; else what is asked; else how the adapters were trained; else 12.

    Of several adapters the smallest number of frames counts.

    Raises:
        UserError: something else than the collection has is asked for, or no such rule.
    """
    asked = {"frames": frames, "sampling": sampling}
    if card is not None and card.clips:
        for name, value in asked.items():
            if value is not None and value != card.clips[name]:
                raise UserError(
                    f"{name} is {value}, but the clips of collection {card.name!r} were embedded "
                    f"with {card.clips[name]}",
                    where=name,
                    fix=f"leave --{name} out, or index into a new collection",
                )
        return ClipRule(**card.clips)
    trained = [job for job in map(_trained, adapters) if job.get("frames")]
    counts = [int(job["frames"]) for job in trained]
    rules = [str(job["sampling"]) for job in trained if job.get("sampling")]
    rule = ClipRule(
        frames if frames is not None else min(counts, default=FRAMES),
        sampling or next(iter(rules), SAMPLING),
    )
    Sampling(rule.sampling, rule.frames)  # refuses what cannot be
    return rule


def _trained(folder: Path) -> Mapping[str, Any]:
    """The settings an adapter was trained with; empty when it came without a record."""
    try:
        record = json.loads((folder / RUN_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record.get("job") or {} if isinstance(record, dict) else {}


@dataclass(frozen=True)
class MediaReader(PictureReader):
    """A `PictureReader` that also reads ``{"video": path}``, with ``"span"`` a part of it.

    Args:
        sampling: the frames of a clip; None where there are no videos.
    """

    sampling: Sampling | None = None

    def read_task(self, item: Any, content: bytes | None, max_pixels: int) -> dict[str, Any]:
        """As `PictureReader.read_task`; of a clip also ``duration`` and ``times``, with ``pixels``
        of all its frames one after another, and ``stills``, the sizes of the JPEGs in ``film``."""
        if not isinstance(item, Mapping):
            return super().read_task(item, content, max_pixels)
        if self.sampling is None:
            raise RuntimeError("a video for a job without a frame rule")
        sampling = self.sampling
        if "span" in item:
            start, end = item["span"]
            span = (start, WHOLE[1] if end is None else end)
            sampling = Sampling(sampling.rule, sampling.frames, span)
        return self._clip(Path(item["video"]), sampling, max_pixels)

    def _clip(self, path: Path, sampling: Sampling, max_pixels: int) -> dict[str, Any]:
        from crossadapt.data.video import read_frames

        name, size = file_id(path)
        facts: dict[str, Any] = {"id": name, "bytes": size}
        if self._knows(bytes.fromhex(name)):
            return facts
        seconds: list[float] = []

        def choose(times: np.ndarray, duration: float) -> np.ndarray:
            seconds.append(duration)
            return sampling(times, duration)

        times: list[float] = []
        pixels, stills, shape = [], [], (0, 0)
        try:
            for time, image in read_frames(path, choose, max_pixels=max_pixels):
                pixels.append(np.ascontiguousarray(self(image)).tobytes())
                stills.append(thumbnail(image))
                times.append(time)
                shape = image.size
        except Unreadable as error:
            return {"id": name, "reason": error.reason}
        except UserError:
            raise
        except Exception as error:
            # An odd clip must not end the run.
            what = f"preprocessing failed: {type(error).__name__}: {error}"
            return {"id": name, "reason": what}
        facts |= {"width": shape[0], "height": shape[1], "times": times}
        facts["duration"] = seconds[0] if seconds else 0.0
        facts |= {"pixels": b"".join(pixels), "film": b"".join(stills)}
        return facts | {"stills": [len(still) for still in stills]}


def file_id(path: Path) -> tuple[str, int]:
    """Id of a file, which is that of its content (`thumbnails.content_id`), and its size in bytes.

    The file is read piece by piece, whatever its size.

    Raises:
        Unreadable: it cannot be read.
    """
    check_file(path)
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise Unreadable(f"cannot open: {message(error)}") from error
    if not size:
        raise Unreadable("empty file: 0 bytes")
    return digest.hexdigest()[:32], size


def clip_vectors(
    embedder: Embedder, pixels: np.ndarray, mask: np.ndarray, view: str = FROZEN
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of prepared clips, and of their frames.

    Args:
        embedder: has the view.
        pixels: uint8 (N, F, 3, H, W).
        mask: bool (N, F), True where there is a frame.
        view: the view of all of them.

    Returns:
        float32 (N, D), the mean of the frames' directions, and float32 (N, F, D), each frame; all
        of length one, frames that are not there zero.

    Raises:
        UserError: an unknown view, or more frames than its adapter takes.
    """
    import torch

    from crossadapt.layers.frame_pooling import mean_pooled
    from crossadapt.tasks.clips import clip_features

    there = torch.from_numpy(mask)
    with embedder.alone(view) as backbone:
        batch = torch.from_numpy(pixels).to(backbone.device)
        frames = clip_features(backbone, batch, there.to(batch.device)).float().cpu()
        vectors = mean_pooled(frames, there)
        directions = torch.nn.functional.normalize(frames, dim=-1)
    return vectors.numpy(), directions.numpy()


def split_film(answer: Mapping[str, Any]) -> list[bytes]:
    """The JPEGs of the frames of a clip that a `MediaReader` read."""
    ends = np.cumsum([0, *answer["stills"]]).tolist()
    return [answer["film"][a:b] for a, b in pairwise(ends)]


def find_moments(
    collection: Collection, hits: Sequence[Hit], vector: np.ndarray, view: str, strength: float
) -> None:
    """Set `start` and `frame` of the hits that are clips: the frame most like the query.

    Args:
        collection: where the hits are from.
        hits: changed here.
        vector: the query, unit length (D,).
        view: the view searched.
        strength: in effect; between 0 and 1 frames are blended as items are.
    """
    card = collection.card
    clips = {hit.id: hit for hit in hits if hit.kind == "video"}
    if not card.clips or not clips:
        return
    views = [view] if strength == 1 or view == FROZEN else [view, FROZEN]
    columns = {name: frames_column(name) for name in views}
    table = collection.get(list(clips), ["id", "times", *columns.values()])
    for row in table.to_pylist():
        if not row["times"] or any(row[column] is None for column in columns.values()):
            continue
        frames = {
            n: np.asarray(row[c], np.float32).reshape(-1, card.dim) for n, c in columns.items()
        }
        best = int(np.argmax(blended(frames, view, strength) @ vector))
        hit = clips[row["id"]]
        hit.start, hit.frame = float(row["times"][best]), best


def still(collection: Collection, name: str, frame: int) -> bytes | None:
    """The small JPEG of one frame of a clip; None when there is none."""
    if not collection.card.clips:
        return None
    rows = collection.get([name], ["stills"]).to_pylist()
    stills = (rows[0]["stills"] or []) if rows else []
    return stills[frame] if 0 <= frame < len(stills) else None
