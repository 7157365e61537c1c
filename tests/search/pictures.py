"""Small rendered pictures, and an indexing process that kills itself: shared by tests."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
from pathlib import Path

from PIL import Image, ImageDraw


def render(seed: int, size: int = 48) -> Image.Image:
    """A coloured shape on a coloured ground; another one for every seed."""
    chance = random.Random(seed)
    ground, ink = (tuple(chance.randrange(256) for _ in range(3)) for _ in range(2))
    image = Image.new("RGB", (size + seed % 7, size), ground)
    draw = ImageDraw.Draw(image)
    corners = sorted(chance.randrange(size) for _ in range(2))
    box = (corners[0], corners[0] // 2, corners[1] + 1, corners[1] + 2)
    (draw.ellipse, draw.rectangle)[seed % 2](box, fill=ink)
    draw.point((seed % size, seed // size % size), fill=(seed % 256, seed // 256 % 256, 7))
    return image


def encoded(seed: int, form: str = "PNG") -> bytes:
    """The picture as the bytes of a file."""
    out = io.BytesIO()
    render(seed).save(out, form)
    return out.getvalue()


def folder(path: Path, count: int, start: int = 0) -> Path:
    """A folder with `count` pictures in subfolders, ``red/000.png`` and so on."""
    for seed in range(start, start + count):
        file = path / ("red", "green", "blue")[seed % 3] / f"{seed:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(seed))
    return path


def main(moment: str, countdown: int, *args: str) -> int:
    """Index in this process, which ends by SIGKILL at a moment.

    `moment` is ``embedding`` or ``upserting`` (before the n-th forward pass or write) or
    ``upserted`` (after the n-th write); anything else never comes.
    """
    from crossadapt.search import writing
    from crossadapt.search.collection import Collection
    from crossadapt.search.embedder import Embedder

    left = countdown

    def tick() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    embed, upsert = Embedder.pictures, Collection.upsert

    def pictures(self, *rest):
        if moment == "embedding":
            tick()
        return embed(self, *rest)

    def written(self, rows):
        if moment == "upserting":
            tick()
        upsert(self, rows)
        if moment == "upserted":
            tick()

    Embedder.pictures, Collection.upsert = pictures, written  # type: ignore[method-assign]
    writing.CHUNK_ROWS = 32
    from crossadapt.cli.main import main as command

    return command(["index", *args])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
