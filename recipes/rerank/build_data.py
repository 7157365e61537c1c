"""Draw the data of the re-ranking measurement: four coloured fields in four places.

Usage: python recipes/rerank/build_data.py OUTPUT [--size {standard,smoke}]

Writes ``OUTPUT/*.png`` (32 x 32) and ``OUTPUT/metadata.jsonl`` (file_name, text, split). The
pictures come in families of 24: all orders of one set of four colours, so that a bag of words or
colours cannot tell a family's members apart. The sets of the three splits differ. The same size
gives the same files.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations, permutations
from pathlib import Path
from random import Random

from PIL import Image, ImageColor

COLOURS = {
    "red": "#d62828", "green": "#2a9d3a", "blue": "#2456c8", "yellow": "#f0d419",
    "purple": "#7b2fa5", "orange": "#f07f13", "black": "#202020", "pink": "#f28ab8",
    "white": "#f6f6f6", "cyan": "#30c8d8",
}  # fmt: skip
SIDE = 32
SIZES = {
    "standard": {"train": 48, "val": 5, "test": 15},
    "smoke": {"train": 4, "val": 1, "test": 1},
}
"""Sets of colours in each split; there are 210. Few to train on, so that a batch of 64 holds several
orders of one set: these are the hard negatives of the matching loss."""
DRAWINGS = {"train": 5, "val": 1, "test": 1}
"""Pictures of each order."""
_JITTER = 24


def caption(order: tuple[str, ...]) -> str:
    """Top left, top right, bottom left, bottom right."""
    return "top {} {} bottom {} {}".format(*order)


def draw(order: tuple[str, ...], random: Random) -> Image.Image:
    """The four fields, their colours varied, parted at a varied place, in cloudy light."""
    picture = Image.new("RGB", (SIDE, SIDE))
    across, down = (SIDE // 2 + random.randint(-3, 3) for _ in range(2))
    boxes = ((0, 0, across, down), (across, 0, SIDE, down),
             (0, down, across, SIDE), (across, down, SIDE, SIDE))  # fmt: skip
    for colour, box in zip(order, boxes, strict=True):
        channels = ImageColor.getrgb(COLOURS[colour])
        varied = tuple(max(0, min(255, c + random.randint(-_JITTER, _JITTER))) for c in channels)
        picture.paste(varied, box)
    # Cloudy light: without it all pictures of one layout would look alike to the duplicate check.
    cloud = Image.new("L", (9, 9))
    cloud.putdata([random.randint(0, 255) for _ in range(81)])
    light = cloud.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return Image.blend(picture, Image.merge("RGB", (light, light, light)), 0.25)


def main() -> None:
    """Write one size of the data."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", choices=SIZES, default="standard")
    given = parser.parse_args()
    random = Random(0)
    pool = list(combinations(COLOURS, 4))
    random.shuffle(pool)
    given.output.mkdir(parents=True, exist_ok=True)
    with (given.output / "metadata.jsonl").open("w", encoding="utf-8") as table:
        for split, count in SIZES[given.size].items():
            chosen, pool = pool[:count], pool[count:]
            orders = [order for colours in chosen for order in permutations(colours)]
            for number, order in enumerate(orders * DRAWINGS[split]):
                name = f"{split}-{number:05}.png"
                draw(order, random).save(given.output / name)
                row = {"file_name": name, "text": caption(order), "split": split}
                table.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
