"""Animated GIF, WebP, PNG and AVIF as frames with their times; a still picture is one frame."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from crossadapt.data.decoding import Unreadable, check_file, decode, message, quiet_pillow, to_rgb
from crossadapt.data.frame_choice import Choose
from crossadapt.data.manifest import is_builtin

_NOT_PICTURES = ("MPEG",)
"""Formats Pillow names but does not decode."""
_SHORTEST = 0.02
_DEFAULT = 0.1
"""Browsers show frames that ask for less than 20 ms for 100 ms."""


def is_picture(source: str | Path | bytes) -> bool:
    """Whether Pillow opens it: a picture or an animation; anything else may be a video.

    Raises:
        Unreadable: there is no such file, or it is not a plain file.
    """
    if isinstance(source, str) and is_builtin(source):
        return True
    if not isinstance(source, bytes):
        check_file(Path(source))
    with quiet_pillow():
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return image.format not in _NOT_PICTURES
        except UnidentifiedImageError:
            return False
        except Exception:
            # A damaged header of a known picture format: decoding says what is wrong with it.
            return True


def read(
    source: str | Path | bytes, choose: Choose, *, max_pixels: int
) -> Iterator[tuple[float, Image.Image]]:
    """Yield (seconds, upright RGB picture) of the chosen frames in order.

    Raises:
        Unreadable: as `decoding.decode`.
    """
    still = decode(source, max_pixels=max_pixels)
    ends = _ends(source)
    if len(ends) < 2:
        for _ in choose(np.zeros(1), 0.0):
            yield 0.0, still
        return
    times = np.concatenate([[0.0], ends[:-1]])
    chosen = [int(number) for number in choose(times, float(ends[-1]))]
    with Image.open(_target(source)) as image:
        for number in chosen:
            with quiet_pillow():
                try:
                    image.seek(number)
                    picture = to_rgb(image)
                except Exception as error:
                    raise Unreadable(f"broken data: frame {number}: {message(error)}") from error
            yield float(times[number]), picture


def _target(source: str | Path | bytes) -> io.BytesIO | str | Path:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _ends(source: str | Path | bytes) -> np.ndarray:
    """The second at which each frame of an animation ends, empty for stills."""
    if isinstance(source, str) and is_builtin(source):
        return np.zeros(0)
    with quiet_pillow(), Image.open(_target(source)) as image:
        if not getattr(image, "is_animated", False):
            return np.zeros(0)
        lengths = []
        try:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                image.load()  # WebP says a frame's length only when it is decoded
                length = float(image.info.get("duration", 0)) / 1000
                lengths.append(length if length >= _SHORTEST else _DEFAULT)
        except Exception as error:
            raise Unreadable(f"truncated: {message(error)}") from error
        return np.cumsum(lengths)
