"""What a worker makes of one picture: its id, its size, the model's pixels, and a thumbnail."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossadapt.data.decoding import Unreadable, check_file, decode_near, message
from crossadapt.data.manifest import is_builtin
from crossadapt.data.worker import Transform

THUMBNAIL_SIDE = 256
"""Longer side of a thumbnail in pixels; smaller pictures keep their size."""
MAX_BYTES = 2**29
"""Largest encoded picture that is read into memory."""
_QUALITY = 82


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of an RGB picture, longer side at most `THUMBNAIL_SIDE`."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def content_id(content: bytes, item: str = "") -> str:
    """Id of an item: 32 hex digits of the SHA-256 of its bytes.

    Built-in items are told apart by their names too: two of them may look the same.
    """
    digest = hashlib.sha256(item.encode() + b"\0" if is_builtin(item) else b"")
    digest.update(content)
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class PictureReader:
    """Reads, hashes, decodes and shrinks pictures; sent to the workers of `data.pool.stream`.

    Args:
        transform: RGB picture to the model's uint8 (3, H, W).
        known: sorted ids, as bytes ``S16``, of which nothing but the id is needed.
        needs: least width and height the transform wants; larger JPEGs are then decoded near it
            (`crossadapt.data.decoding.decode_near`). None decodes all of them at full size.
    """

    transform: Transform
    known: np.ndarray
    needs: tuple[int, int] | None = None

    def read_task(
        self, item: str | Sequence[Any], content: bytes | None, max_pixels: int
    ) -> dict[str, Any]:
        """Everything that is stored about a picture, but its vectors.

        Args:
            item: a path, a built-in name, or [archive, offset, size] of a member.
            content: its bytes, if they have been read already.
            max_pixels: cap of the decoder.

        Returns:
            ``id`` and ``bytes`` (size of the content); unless the id is known also ``width`` and
            ``height`` of the upright original, ``pixels`` and ``thumbnail``. If the picture
            cannot be decoded, ``id`` and ``reason``.

        Raises:
            Unreadable: it cannot even be read.
        """
        if content is None:
            content = _read(item)
        name = content_id(content, item if isinstance(item, str) else "")
        facts: dict[str, Any] = {"id": name, "bytes": len(content)}
        if self._knows(bytes.fromhex(name)):
            return facts
        try:
            image, (width, height) = decode_near(content, self._near(), max_pixels=max_pixels)
        except Unreadable as error:
            return {"id": name, "reason": error.reason}
        try:
            pixels = np.ascontiguousarray(self(image))
            small = thumbnail(image)
        except Exception as error:
            # An odd picture (1 x 9000 pixels, say) must not end the run.
            what = f"preprocessing failed: {type(error).__name__}: {error}"
            return {"id": name, "reason": what}
        size = {"width": width, "height": height}
        return facts | size | {"pixels": pixels.tobytes(), "thumbnail": small}

    def __call__(self, image: Image.Image) -> np.ndarray:
        """One picture, as the plain transform."""
        return np.asarray(self.transform(image))

    def _near(self) -> tuple[int, int] | None:
        """What the picture has to be good for: the model's pixels and the thumbnail."""
        if self.needs is None:
            return None
        width, height = self.needs
        return max(width, THUMBNAIL_SIDE), max(height, THUMBNAIL_SIDE)

    def _knows(self, digest: bytes) -> bool:
        place = int(np.searchsorted(self.known, np.bytes_(digest)))
        return place < len(self.known) and self.known[place] == np.bytes_(digest)


def id_array(ids: Sequence[str]) -> np.ndarray:
    """Ids in the form `PictureReader` looks them up in: sorted ``S16``."""
    return np.sort(np.array([bytes.fromhex(name) for name in ids], "S16"))


def _read(item: str | Sequence[Any]) -> bytes:
    if not isinstance(item, str):
        archive, offset, size = item
        return _part(Path(archive), int(offset), int(size))
    if is_builtin(item):
        from crossadapt.data.openmoji import picture_bytes

        return picture_bytes(item)
    path = Path(item)
    check_file(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise Unreadable(f"too large: {size / 2**20:.0f} MB, the limit is {MAX_BYTES >> 20} MB")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot open: {message(error)}") from error


def _part(archive: Path, offset: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise Unreadable(f"too large: {size / 2**20:.0f} MB, the limit is {MAX_BYTES >> 20} MB")
    check_file(archive)
    try:
        with archive.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise Unreadable(f"cannot open: {message(error)}") from error
    if len(content) < size:
        raise Unreadable("truncated: the archive ends inside this member")
    return content
