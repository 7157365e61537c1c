"""Draw the data of the re-ranking measurement: two coloured shapes and how they lie to each other.

Usage: python recipes/rerank/build_data.py OUTPUT [--size {standard,smoke}]

Writes ``OUTPUT/*.png`` (32 x 32) and ``OUTPUT/metadata.jsonl`` (file_name, text, split). Scenes of
the validation and test splits never occur in training. They come in families of four that hold the
same words in another order: the scene, its shapes exchanged, its colours exchanged, and both. A
bag of words cannot tell a family's members apart. The same size gives the same files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

COLOURS = {
    "red": "#d62828", "green": "#2a9d3a", "blue": "#2456c8", "yellow": "#f0c419",
    "purple": "#8b3fb5", "orange": "#f07f13", "black": "#202020", "pink": "#f28ab8",
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
SIDE, CELL = 32, 16
SIZES = {
    "standard": {"train": 640, "val": 50, "test": 150},
    "smoke": {"train": 24, "val": 6, "test": 8},
}
"""Families of each split; there are 840."""
DRAWINGS = {"train": 4, "val": 1, "test": 1}
"""Pictures of each scene."""


class Thing(NamedTuple):
    """A coloured shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{'an' if self.colour == 'orange' else 'a'} {self.colour} {self.shape}"


class Scene(NamedTuple):
    """The first thing lies so to the second."""

    first: Thing
    relation: str
    second: Thing

    def __str__(self) -> str:
        return f"{self.first} {self.relation} {self.second}"


def family(scene: Scene) -> list[Scene]:
    """The scene, shapes exchanged, colours exchanged, both exchanged."""
    (a, x), relation, (b, y) = scene
    pairs = ((a, x, b, y), (a, y, b, x), (b, x, a, y), (b, y, a, x))
    return [Scene(Thing(p, q), relation, Thing(r, s)) for p, q, r, s in pairs]


def families(random: Random) -> list[list[Scene]]:
    """All families of scenes with two colours and two shapes, shuffled; none shares a scene."""
    found: dict[frozenset[str], list[Scene]] = {}
    for a in COLOURS:
        for b in COLOURS:
            for x in SHAPES:
                for y in SHAPES:
                    # A scene read from its other end is the same picture: two relations suffice.
                    for relation in ("above", "left of"):
                        if a != b and x != y:
                            scenes = family(Scene(Thing(a, x), relation, Thing(b, y)))
                            found.setdefault(frozenset(map(str, scenes)), scenes)
    ordered = [found[key] for key in sorted(found, key=sorted)]
    random.shuffle(ordered)
    return ordered


def draw(scene: Scene, random: Random) -> Image.Image:
    """The scene on a pale ground, things of varied size and place."""
    ground = tuple(random.randint(215, 255) for _ in range(3))
    picture = Image.new("RGB", (SIDE * 4, SIDE * 4), ground)
    canvas = ImageDraw.Draw(picture)
    dx, dy = RELATIONS[scene.relation]
    across = random.randint(0, 1)
    for thing, side in ((scene.first, 1), (scene.second, -1)):
        column = across if dx == 0 else (1 + side * dx) // 2
        row = across if dy == 0 else (1 + side * dy) // 2
        size = random.randint(36, 56)
        left = column * CELL * 4 + random.randint(2, 62 - size)
        top = row * CELL * 4 + random.randint(2, 62 - size)
        shape(canvas, thing, left, top, size)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def shape(canvas: ImageDraw.ImageDraw, thing: Thing, left: int, top: int, size: int) -> None:
    """One thing in its square."""
    fill, box = COLOURS[thing.colour], (left, top, left + size, top + size)
    third = size // 3
    if thing.shape == "circle":
        canvas.ellipse(box, fill=fill)
    elif thing.shape == "ring":
        canvas.ellipse(box, outline=fill, width=size // 5)
    elif thing.shape == "square":
        canvas.rectangle(box, fill=fill)
    elif thing.shape == "bar":
        canvas.rectangle((left, top + third, left + size, top + 2 * third), fill=fill)
    elif thing.shape == "triangle":
        peak = (left + size // 2, top)
        canvas.polygon([peak, (left, top + size), (left + size, top + size)], fill=fill)
    else:
        canvas.rectangle((left + third, top, left + 2 * third, top + size), fill=fill)
        canvas.rectangle((left, top + third, left + size, top + 2 * third), fill=fill)


def main() -> None:
    """Write one size of the data."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", choices=SIZES, default="standard")
    given = parser.parse_args()
    random = Random(0)
    pool = families(random)
    given.output.mkdir(parents=True, exist_ok=True)
    with (given.output / "metadata.jsonl").open("w", encoding="utf-8") as table:
        for split, count in SIZES[given.size].items():
            chosen, pool = pool[:count], pool[count:]
            scenes = [scene for group in chosen for scene in group]
            for number, scene in enumerate(scenes * DRAWINGS[split]):
                name = f"{split}-{number:05}.png"
                draw(scene, random).save(given.output / name)
                row = {"file_name": name, "text": str(scene), "split": split}
                table.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
