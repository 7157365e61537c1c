"""Scenes to pixels, label maps and H.264 files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from crossadapt.data.clips.cast import drawing
from crossadapt.data.clips.scenes import COLOURS, SIZE, Background, Scene
from crossadapt.errors import UserError

_VISIBLE = 128
"""Opacity from which a pixel belongs to a picture's mask."""


def draw(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """All frames of a scene.

    Returns:
        Pictures, uint8 (frames, SIZE, SIZE, 3), and label maps, uint8 (frames, SIZE, SIZE): 0 for
        the background, otherwise the number of the actor in front, from 1.
    """
    back = Image.fromarray(paint(scene.background)).convert("RGBA")
    pictures = np.zeros((scene.frames, SIZE, SIZE, 3), np.uint8)
    labels = np.zeros((scene.frames, SIZE, SIZE), np.uint8)
    for time in range(scene.frames):
        canvas = back.copy()
        for label, actor in enumerate(scene.actors, 1):
            pose = actor.poses[time]
            if pose is None:
                continue
            side = max(1, round(pose.side))
            sprite = drawing(actor.picture.code).resize((side, side), Image.Resampling.LANCZOS)
            layer = Image.new("RGBA", (SIZE, SIZE))
            layer.paste(sprite, (round(pose.x - side / 2), round(pose.y - side / 2)))
            canvas.alpha_composite(layer)
            labels[time][np.asarray(layer)[:, :, 3] >= _VISIBLE] = label
        pictures[time] = np.asarray(canvas)[:, :, :3]
    return pictures, labels


def paint(background: Background) -> np.ndarray:
    """A background: uint8 (SIZE, SIZE, 3)."""
    colour = np.array(COLOURS[background.colour], float)
    light = colour + (255 - colour) * 0.45
    y, x = np.mgrid[:SIZE, :SIZE]
    share = {
        "plain": np.zeros((SIZE, SIZE)),
        "stripes": ((x + y) // 10 % 2).astype(float),
        "checks": ((x // 12 + y // 12) % 2).astype(float),
        "dots": ((x % 16 - 8) ** 2 + (y % 16 - 8) ** 2 < 20).astype(float),
        "shade": y / (SIZE - 1),
    }[background.pattern][:, :, None]
    return np.rint(colour * (1 - share) + light * share).astype(np.uint8)


def encode(pictures: np.ndarray, rate: int, *, independent: bool = False) -> bytes:
    """An MP4 file with H.264 video; the same pictures give the same bytes.

    Args:
        pictures: uint8 (frames, height, width, 3), even sizes.
        rate: frames a second.
        independent: code every frame by itself, so that its decoded pixels do not depend on the
            frames around it; otherwise with P and B frames.

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(
            "writing videos needs PyAV", where="clips", fix='pip install "crossadapt[video]"'
        ) from error
    options = {"preset": "veryfast", "qp": "20", "threads": "1"}
    options |= {"g": "1"} if independent else {"g": "8", "bf": "2"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for place, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = place
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()
