"""Pictures of every kind and broken files, made on the spot; also used by tests of other parts."""

from __future__ import annotations

import io
import os
import signal
import struct
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "purple": (150, 40, 180),
}
BROKEN_KINDS = (
    "empty",
    "truncated",
    "pdf",
    "noise",
    "html",
    "bomb",
    "header_only",
    "folder",
    "bad_png",
    "dangling_link",
)
HANG, DIE = (1, 2, 3), (3, 2, 1)


def picture(number: int = 0, size: tuple[int, int] = (32, 24)) -> Image.Image:
    """A small picture, different for each number: a coloured square and stripes."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG whose header names a huge size, with next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def break_file(path: Path, kind: str) -> None:
    """Replace a picture by something broken, of one of `BROKEN_KINDS`."""
    path.unlink(missing_ok=True)
    good = jpeg(picture(7, (200, 160)))
    contents = {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "pdf": b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n",
        "noise": np.random.default_rng(0).bytes(300),
        "html": b"<!DOCTYPE html><title>404</title>",
        "bomb": bomb(),
        "header_only": good[:20],
        "bad_png": bomb(20, 20)[:-20],
    }
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling_link":
        path.symlink_to(path.with_name("gone-for-good"))
    else:
        path.write_bytes(contents[kind])


def folder_of_pictures(
    folder: Path, count: int = 200, broken: int = 10, captions: int = 1
) -> dict[str, str]:
    """`count` JPEGs with side-car texts, `broken` of them broken in different ways.

    Returns the names of the broken files with the kind of damage. Texts name colour and number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step = max(1, count // max(1, broken))
    damage: dict[str, str] = {}
    for number in range(count):
        path = folder / f"{number:03d}.jpg"
        colour = list(COLOURS)[number % len(COLOURS)]
        text = [f"picture {number} in {colour}", f"a {colour} thing, number {number}"]
        path.with_suffix(".txt").write_text("\n".join(text[:captions]) + "\n")
        if number % step == step - 1 and len(damage) < broken:
            kind = BROKEN_KINDS[len(damage) % len(BROKEN_KINDS)]
            break_file(path, kind)
            damage[path.name] = kind
        else:
            image = picture(number)
            image.paste(COLOURS[colour], (0, 0, 16, 24))
            path.write_bytes(jpeg(image))
    return damage


def tiny(image: Image.Image) -> np.ndarray:
    """A transform: uint8 (3, 4, 6)."""
    return np.asarray(image.resize((6, 4))).transpose(2, 0, 1)


def dangerous(image: Image.Image) -> np.ndarray:
    """A transform that hangs or kills its process when the picture has a certain colour."""
    colour = image.getpixel((0, 0))
    if colour == HANG:
        time.sleep(60)
    if colour == DIE:
        os.kill(os.getpid(), signal.SIGKILL)
    return tiny(image)
