"""Files and bytes to upright RGB pictures, whatever a camera, a scanner or the web made of them."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Default cap on width x height, checked on the header before any pixel is decoded."""

DRAFT = 1.0
"""A JPEG decoded small is at least so many times as large as what it is then resized to."""

_ORIENTATION_TAG = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LOOKS_LIKE = (
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing, render it to PNG first"),
    (b"<?xml", "an XML or SVG file"),
    (b"<!doctype", "an HTML page, perhaps a failed download"),
    (b"<html", "an HTML page, perhaps a failed download"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"version https://git-lfs", "a Git LFS pointer, run `git lfs pull`"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
)
# Warning filters and Pillow's size limit belong to the whole process, so one thread at a time
# may change them. Parallel decoding is done by processes.
_PILLOW_STATE = threading.RLock()


class Unreadable(Exception):
    """A picture that cannot be decoded. `reason` reads ``kind: detail`` and goes to the ledger."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def decode(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """One picture, upright, 8-bit RGB, at its full size; see `decode_near`."""
    return decode_near(source, None, max_pixels=max_pixels)[0]


def decode_near(
    source: str | Path | bytes, near: tuple[int, int] | None, *, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode one picture to upright 8-bit RGB.

    EXIF rotation is applied; CMYK, palette, grey, 16-bit and float pictures are converted;
    transparency is composited on white; of an animation the first frame is taken. The file name
    extension plays no role.

    Args:
        source: a path, encoded bytes, or a built-in name such as ``openmoji:1F600``.
        near: width and height the picture will be shrunk to. A JPEG is then decoded at a half, a
            quarter or an eighth of its size, as long as that leaves `DRAFT` times as much; the
            rest of the way is up to the caller. None decodes at full size.
        max_pixels: largest width x height that will be decoded.

    Returns:
        The picture, and width and height of the upright original.

    Raises:
        Unreadable: missing, empty, truncated, too large, or not a picture; with the reason.
    """
    if isinstance(source, bytes):
        content = source
    elif isinstance(source, str) and source.startswith("openmoji:"):
        from crossadapt.data.openmoji import picture_bytes

        content = picture_bytes(source)
    else:
        content = _read(Path(source))
    if not content:
        raise Unreadable("empty file: 0 bytes")
    with quiet_pillow():
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            raise Unreadable(f"not a picture: {describe(content)}") from None
        except Exception as error:
            # A broken header can raise almost anything from inside a format plugin.
            raise Unreadable(f"broken header: {message(error)}") from error
        width, height = image.size
        if width * height > max_pixels:
            raise Unreadable(
                f"too large: {width} x {height} pixels, the limit is {max_pixels} in all"
            )
        try:
            if near is not None:
                _draft(image, near)
            image.load()
            drafted = image.size
            upright = to_rgb(_upright(image))
        except Exception as error:
            text = message(error)
            kind = "truncated" if "truncated" in text.lower() else "broken data"
            raise Unreadable(f"{kind}: {text}") from error
    if upright.size != drafted:  # turned by a quarter
        width, height = height, width
    return upright, (width, height)


def _draft(image: Image.Image, near: tuple[int, int]) -> None:
    """Have a JPEG decoded small: inverse DCTs of fewer coefficients, which other formats lack."""
    if image.format == "JPEG":
        # The orientation is not applied yet, so each side must do for both.
        side = round(DRAFT * max(near))
        image.draft(None, (side, side))


def check_file(path: Path) -> None:
    """Make sure that `path` can be opened and read to an end.

    Raises:
        Unreadable: missing, a folder, or a device or pipe.
    """
    try:
        # Asking before opening: opening a named pipe would wait for ever.
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise Unreadable("missing file: no such file") from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot open: {message(error)}") from error
    if stat.S_ISDIR(mode):
        raise Unreadable("not a file: it is a folder")
    if not stat.S_ISREG(mode):
        raise Unreadable("not a file: it is a device or a pipe")


def _read(path: Path) -> bytes:
    check_file(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Unreadable("missing file: no such file") from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot open: {message(error)}") from error


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings and no size limit of Pillow's own: our cap names the size and is adjustable."""
    with _PILLOW_STATE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # Damaged EXIF says nothing about the pixels, which have just been decoded completely.
        return image
    turn = _TURN.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow picture as 8-bit RGB, transparency on white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    # convert() returns a copy without the file behind it, also when the mode is RGB already.
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Integer grey is taken as 16-bit, float grey as [0, 1] when it fits and [0, 255] otherwise."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0)
        values = values * 255 if values.min() >= 0 and values.max() <= 1 else values
    else:
        values = values / 257
    grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def describe(content: bytes) -> str:
    """What the first bytes of a file look like, in words."""
    start = content[:64].lstrip().lower()
    for magic, name in _LOOKS_LIKE:
        if start.startswith(magic.lower()):
            return f"it is {name}"
    if content[4:8] == b"ftyp":
        return "it is a video or HEIC file, convert it to JPEG first"
    return f"unknown format, it starts with {content[:8]!r}"


def message(error: Exception) -> str:
    """An error's text on one line, or its name."""
    return " ".join(str(error).split()) or type(error).__name__
