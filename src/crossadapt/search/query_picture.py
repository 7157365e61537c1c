"""The picture of a query: limits that keep a hostile file cheap, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crossadapt.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Limits:
    """The largest query that is accepted."""

    max_text: int = 2000
    """Characters of a text, and of the excluded words."""
    max_k: int = 1000
    """Hits."""
    max_rerank: int = 1000
    """Hits that are judged again."""
    max_pixels: int = 64_000_000
    """Width x height of a picture, read from its header before any pixel is decoded."""
    max_bytes: int = 32 * 2**20
    """Size of an encoded picture."""
    max_aspect: float = 50.0
    """Longer side / shorter side of a picture; resizing a thread would take gigabytes."""


LIMITS = Limits()


def prepared_pixels(
    image: bytes | None,
    limits: Limits,
    transform: Callable[[Image.Image], np.ndarray] | None,
    name: str,
) -> np.ndarray | None:
    """Decode an encoded picture and bring it into the model's form, uint8 (1, 3, H, W).

    Args:
        image: encoded bytes; None gives None.
        limits: sizes that are accepted, the pixels by the header alone.
        transform: ``embedder.prepare``.
        name: what to call the picture in errors.

    Raises:
        UserError: it is too large, too narrow, damaged, or not a picture.
    """
    if image is None:
        return None
    if transform is None:
        raise TypeError("a query with a picture needs transform=embedder.prepare")
    from crossadapt.data.decoding import Unreadable, decode

    _check_bytes(len(image), limits, name)
    try:
        picture = decode(image, max_pixels=limits.max_pixels)
    except Unreadable as error:
        raise UserError(
            f"the picture cannot be used: {error.reason}", where=name, fix=_advice(error.reason)
        ) from error
    width, height = picture.size
    if max(width, height) > limits.max_aspect * min(width, height):
        raise UserError(
            f"the picture is too narrow: {width} x {height} pixels",
            where=name,
            fix=f"crop it: one side may be {limits.max_aspect:.0f} times the other at most",
        )
    return np.asarray(transform(picture))[None]


def _advice(reason: str) -> str:
    if reason.startswith("too large"):
        return "give a smaller copy; models look at a few hundred pixels a side"
    if reason.startswith(("truncated", "broken", "empty")):
        return "the file is incomplete or damaged: copy or export it again"
    return "give a JPEG, PNG, WebP, GIF or TIFF picture"


def read_picture(path: Path, limits: Limits = LIMITS) -> bytes:
    """The bytes of a picture file; its size is looked at before it is read.

    Raises:
        UserError: there is no such file, it is no regular file, or it is too large.
    """
    try:
        if not path.is_file():  # a named pipe would be waited for without end
            what = "is not a file" if path.exists() else "does not exist"
            raise UserError(f"the picture {what}", where=str(path), fix="check the path")
        _check_bytes(path.stat().st_size, limits, str(path))
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"the picture cannot be opened: {error}", where=str(path)) from error


def _check_bytes(size: int, limits: Limits, name: str) -> None:
    if size > limits.max_bytes:
        raise UserError(
            f"the picture has {size / 2**20:.1f} MB, "
            f"the limit is {limits.max_bytes / 2**20:.0f} MB",
            where=name,
            fix="give a smaller copy; models look at a few hundred pixels a side",
        )
