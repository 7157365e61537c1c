"""Small videos of every kind, written on the spot. Frame i is grey of level 8 i (mod 256)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

STEP = 8
QUICK = {"preset": "ultrafast", "g": "12", "bf": "2"}


def grey(number: int, size: tuple[int, int] = (32, 24)) -> np.ndarray:
    """The picture of frame `number`: uint8 (height, width, 3)."""
    return np.full((size[1], size[0], 3), number * STEP % 256, np.uint8)


def number_of(image: Image.Image) -> int:
    """Which frame a decoded picture is, modulo 32."""
    return round(float(np.asarray(image).mean()) / STEP) % (256 // STEP)


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray] | int,
    *,
    rate: int = 10,
    milliseconds: Sequence[int] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    audio_seconds: float = 0.0,
) -> Path:
    """Write pictures (or so many grey frames) at a constant rate, or at the given times."""
    frames = [grey(i) for i in range(pictures)] if isinstance(pictures, int) else pictures
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.options = QUICK if options is None else options
        base = Fraction(1, 1000) if milliseconds is not None else Fraction(1, rate)
        stream.codec_context.time_base = base
        sound = file.add_stream("aac", rate=8000) if audio_seconds else None
        for place, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = milliseconds[place] if milliseconds is not None else place
            frame.time_base = base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound is not None:
            _write_tone(file, sound, audio_seconds)
    return path


def write_audio(path: Path, seconds: float = 0.3) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as file:
        _write_tone(file, file.add_stream("aac", rate=8000), seconds)
    return path


def _write_tone(file: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for start in range(0, int(seconds * 8000), 1024):
        wave = np.sin(np.arange(start, start + 1024) / 5)[None].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into the track header of an MP4 file: how phones say "turned"."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # version 0: 20 bytes of times and ids, 20 of the rest
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    assert struct.unpack(">i", content[start : start + 4])[0] == 1 << 16
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    return path


def write_animation(path: Path, milliseconds: Sequence[int]) -> Path:
    """A GIF, WebP or PNG animation whose frames last so long."""
    images = [Image.fromarray(grey(i)) for i in range(len(milliseconds))]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=list(milliseconds), **options
    )
    return path
