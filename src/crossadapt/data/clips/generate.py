"""Writing the generated clips: videos, manifest, masks and facts."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from crossadapt.data.clips import grammar
from crossadapt.data.clips.cast import Picture, cast
from crossadapt.data.clips.render import draw, encode
from crossadapt.data.clips.scenes import (
    COLOURS,
    EVENTS,
    PATTERNS,
    PROBE_EVENTS,
    Background,
    Scene,
    holds_out,
    make_scene,
    reverse,
)
from crossadapt.data.manifest import Manifest
from crossadapt.data.openmoji import ATTRIBUTION
from crossadapt.errors import UserError, did_you_mean
from crossadapt.files import make_folder, replacing, write_file

MANIFEST = "manifest.parquet"
FACTS = "facts.jsonl"
MASKS = "masks.npz"
CAPTIONS = 3
_TRIES = 1000


@dataclass(frozen=True)
class Size:
    """How many clips each split gets, and how many pairs the probe."""

    train: int
    val: int
    test: int
    pairs: int


SIZES = {"small": Size(600, 100, 200, 100), "standard": Size(4000, 400, 1000, 300)}


@dataclass(frozen=True)
class Clip:
    """A scene with its name, split and sentences; `pair` names the probe pair it belongs to."""

    name: str
    split: str
    scene: Scene
    texts: tuple[str, ...]
    pair: str = ""


def make_clips(
    output: str | Path,
    size: str | Size = "small",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Generate clips of OpenMoji pictures that move, and write them to a folder.

    The folder gets ``videos/*.mp4`` (H.264), ``manifest.parquet``, ``facts.jsonl`` (per clip:
    events, actors, boxes, count, questions with answers), ``masks.npz`` (per clip a label map
    (frames, height, width)) and ``ATTRIBUTION``. The same size and seed give the same files.

    Splits ``train``, ``val`` and ``test`` use pictures of that split of the built-in data only,
    and a quarter of the combinations of event and background colour never occurs in ``train``
    (attribute ``combination``). Split ``probe`` (attribute ``probe``) holds pairs of clips of
    test pictures that run backwards into each other, under captions that differ in order or
    direction only.

    Args:
        output: must not exist yet, or be empty.
        size: a key of `SIZES`, or numbers of one's own.
        seed: start of every random choice.
        progress: called with (clips written, all).

    Raises:
        UserError: unknown size, the folder is in use, or an extra is not installed.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise UserError(f"unknown size {size!r}", where="size", fix=did_you_mean(size, SIZES))
        size = SIZES[size]
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            "the output folder is not empty", where=str(folder), fix="name a new folder"
        )
    clips = list(compose(size, seed))
    videos = make_folder(folder / "videos")
    facts: list[str] = []
    with (
        replacing(folder / MASKS) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for number, clip in enumerate(clips, 1):
            pictures, labels = draw(clip.scene)
            content = encode(pictures, clip.scene.rate, independent=bool(clip.pair))
            # Not flushed one by one: until the manifest is there, the folder counts for nothing.
            (videos / f"{clip.name}.mp4").write_bytes(content)
            # A fixed date keeps the archive the same from day to day.
            entry = zipfile.ZipInfo(f"{clip.name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, labels)
            facts.append(json.dumps(facts_of(clip, labels)))
            if progress is not None:
                progress(number, len(clips))
    write_file(folder / FACTS, "\n".join(facts) + "\n")
    note = f"{ATTRIBUTION[0].upper()}{ATTRIBUTION[1:]}.\n"
    note += "https://creativecommons.org/licenses/by-sa/4.0/\nRendered and animated.\n"
    write_file(folder / "ATTRIBUTION", note)
    rows = [row for clip in clips for row in _rows(clip, videos.absolute())]
    notes = [f"generated clips, seed {seed}; {ATTRIBUTION}"]
    manifest = Manifest.from_rows(rows, source=str(folder), notes=notes)
    # Last, so that a folder with a manifest is complete.
    manifest.write(folder / MANIFEST)
    return manifest


def compose(size: Size, seed: int) -> Iterator[Clip]:
    """What is to be shown and said, clip by clip; no text is used for two clips."""
    used: set[str] = set()
    for split in ("train", "val", "test"):
        pictures = cast(split)
        for number in range(getattr(size, split)):
            name = f"{split}-{number:05d}"
            random = Random(f"clips/{seed}/{name}")
            event = EVENTS[number % len(EVENTS)]
            unseen = split != "train" and number // len(EVENTS) % 2 == 1
            for _ in range(_TRIES):
                background = _background(random)
                if holds_out(event, background) != unseen:
                    continue
                scene = make_scene(event, pictures, background, random)
                texts = tuple(grammar.captions(scene, CAPTIONS, random))
                if used.isdisjoint(texts):
                    break
            else:
                raise UserError(
                    f"there are not enough different sentences for {getattr(size, split)} clips",
                    where=split,
                    fix="ask for fewer",
                )
            used.update(texts)
            yield Clip(name, split, scene, texts)
    yield from _probe(size.pairs, seed, cast("test"), used)


def _probe(pairs: int, seed: int, pictures: list[Picture], used: set[str]) -> Iterator[Clip]:
    for number in range(pairs):
        pair = f"probe-{number:04d}"
        random = Random(f"clips/{seed}/{pair}")
        event = PROBE_EVENTS[number % len(PROBE_EVENTS)]
        for _ in range(_TRIES):
            scene = make_scene(event, pictures, _background(random), random)
            form = random.randrange(grammar.forms(scene))
            named = random.random() < 0.5
            both = (scene, reverse(scene))
            texts = [grammar.sentence(s, form, background=named) for s in both]
            if used.isdisjoint(texts):
                break
        else:
            raise UserError(
                f"there are not enough different sentences for {pairs} pairs",
                where="probe",
                fix="ask for fewer",
            )
        used.update(texts)
        for letter, shown, text in zip("ab", both, texts, strict=True):
            yield Clip(f"{pair}{letter}", "probe", shown, (text,), pair)


def _background(random: Random) -> Background:
    return Background(random.choice(list(COLOURS)), random.choice(PATTERNS))


def facts_of(clip: Clip, labels: np.ndarray) -> dict[str, Any]:
    """Everything true of a clip, as plain JSON types.

    ``boxes`` of an actor hold (left, top, right, bottom) in pixels of its visible part in each
    frame, right and bottom excluded, or null.
    """
    scene = clip.scene
    return {
        "clip": clip.name,
        "split": clip.split,
        "pair": clip.pair,
        "event": scene.event,
        "frames": scene.frames,
        "rate": scene.rate,
        "count": len(scene.actors),
        "background": {"colour": scene.background.colour, "pattern": scene.background.pattern},
        "actors": [
            {
                "label": label,
                "codepoint": actor.picture.code,
                "name": actor.picture.name,
                "boxes": [_box(frame == label) for frame in labels],
            }
            for label, actor in enumerate(scene.actors, 1)
        ],
        "texts": list(clip.texts),
        "questions": grammar.questions(scene),
    }


def _box(mask: np.ndarray) -> list[int] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _rows(clip: Clip, videos: Path) -> Iterator[dict[str, Any]]:
    scene = clip.scene
    unseen = holds_out(scene.event, scene.background)
    for text in clip.texts:
        yield {
            "item": str(videos / f"{clip.name}.mp4"),
            "kind": "video",
            "text": text,
            "group": clip.name,
            "split": clip.split,
            "event": scene.event,
            "action": scene.action,
            "direction": scene.way,
            "colour": scene.background.colour,
            "pattern": scene.background.pattern,
            "count": len(scene.actors),
            "combination": "held out" if unseen else "seen",
            "probe": bool(clip.pair),
            "pair": clip.pair,
        }
