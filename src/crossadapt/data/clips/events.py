"""What happens in a generated clip, as a task with three modalities: frames, text, signals.

The text names the pictures that appear, in alphabetical order, and nothing else: who, never what.
The signals are what a poor tracker would report: for up to two of the pictures, in random order,
centre and size of the visible part in every frame, with noise and gaps.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

from crossadapt.data.clips.generate import FACTS
from crossadapt.data.clips.scenes import SIZE
from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError

EVENTS_MANIFEST = "events.parquet"
TRACKS = 2
CHANNELS = 4 * TRACKS
"""Per track: horizontal and vertical centre, width, height, in shares of the frame."""


def write_events(
    folder: str | Path, *, noise: float = 0.15, missing: float = 0.3, seed: int = 0
) -> Manifest:
    """Write ``events.parquet`` into a folder that `make_clips` made, and return it.

    Columns beside the core ones: ``label`` (the event, such as ``move-left``), ``count`` (pictures
    in the clip) and ``signals`` (frames x 8, NaN where the tracker lost the picture). The order
    probe is left out.

    Args:
        folder: with the videos and ``facts.jsonl``.
        noise: standard deviation of the error of every number, in shares of the frame.
        missing: probability that a track is lost in a frame.
        seed: of noise and gaps.

    Raises:
        UserError: the folder holds no generated clips, or a number makes no sense.
    """
    folder = Path(folder)
    if not (noise >= 0 and math.isfinite(noise)):
        raise UserError(f"noise is {noise}", where="noise", fix="give 0.15 or thereabouts")
    if not 0 <= missing < 1:
        raise UserError(f"missing is {missing}", where="missing", fix="give a value in [0, 1)")
    try:
        lines = (folder / FACTS).read_text("utf-8").splitlines()
        facts = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"no facts about generated clips can be read: {error}",
            where=str(folder / FACTS),
            fix="make the clips first: crossadapt data clips",
        ) from error
    rows = [_row(clip, folder, noise, missing, seed) for clip in facts if not clip["pair"]]
    said = f"tracks with noise {noise:g}, {100 * missing:g} % missing, seed {seed}"
    manifest = Manifest.from_rows(rows, source=str(folder), notes=[said])
    manifest.write(folder / EVENTS_MANIFEST)
    return manifest


def _row(clip: dict[str, Any], folder: Path, noise: float, missing: float, seed: int) -> dict:
    names = sorted({actor["name"] for actor in clip["actors"]})
    random = Random(f"events/{seed}/{clip['clip']}")
    tracked = random.sample(clip["actors"], min(TRACKS, len(clip["actors"])))
    return {
        "item": str((folder / "videos" / f"{clip['clip']}.mp4").absolute()),
        "kind": "video",
        "text": " and ".join(names),
        "group": clip["clip"],
        "split": clip["split"],
        "label": clip["event"],
        "count": clip["count"],
        "signals": [
            [
                value
                for place in range(TRACKS)
                for value in _seen(tracked, place, frame, noise, missing, random)
            ]
            for frame in range(clip["frames"])
        ],
    }


def _seen(
    tracked: list[dict[str, Any]],
    place: int,
    frame: int,
    noise: float,
    missing: float,
    random: Random,
) -> list[float]:
    """Centre and size in one frame as reported; NaN without a picture, or lost."""
    lost = random.random() < missing
    errors = [random.gauss(0.0, noise) for _ in range(4)]
    box = tracked[place]["boxes"][frame] if place < len(tracked) else None
    if box is None or lost:
        return [math.nan] * 4
    left, top, right, bottom = box
    true = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return [value / SIZE + error for value, error in zip(true, errors, strict=True)]
