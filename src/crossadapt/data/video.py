"""Videos, animations and pictures as chosen frames with their times (videos: extra ``video``).

Frames are chosen from the timestamps, before anything is decoded, and only those pictures are made:
memory holds the decoder and one picture, whatever the length of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from crossadapt.data import animation
from crossadapt.data.container import errors, opened, upright
from crossadapt.data.decoding import MAX_PIXELS, Unreadable
from crossadapt.data.frame_choice import Choose
from crossadapt.data.manifest import is_builtin

_INDEXED = ("mov", "matroska")
"""Containers whose packets carry presentation times that decoded frames repeat exactly."""
_TRUNCATED_SECONDS = 0.5
_EPSILON = 1e-9


class Shot(NamedTuple):
    """A frame: its time in seconds from the first frame, and the upright RGB picture."""

    time: float
    image: Image.Image


@dataclass(frozen=True)
class ClipInfo:
    """What a file holds: size in pixels as shown, frame times (n,) in seconds from the first
    frame, and the duration in seconds (0 for a still picture)."""

    width: int
    height: int
    times: np.ndarray
    duration: float


def read_frames(
    source: str | Path | bytes, choose: Choose, *, max_pixels: int = MAX_PIXELS
) -> Iterator[Shot]:
    """Yield the chosen frames in order.

    A still picture is a clip of one frame at second 0 with duration 0. Rotation and mirroring
    stored in the file are applied. Nothing stays open when the iterator ends or is closed.

    Args:
        source: path, encoded bytes, or a built-in name; the file name extension plays no role.
        choose: such as `frame_choice.Sampling`.
        max_pixels: largest width x height that will be decoded.

    Raises:
        Unreadable: missing, truncated, without pictures, or broken; with the reason.
        UserError: it is a video and PyAV is not installed.
    """
    if animation.is_picture(source):
        for time, image in animation.read(source, choose, max_pixels=max_pixels):
            yield Shot(time, image)
        return
    clock = _clock(source, max_pixels)
    chosen = [int(number) for number in choose(clock.times, clock.duration)]
    with errors(), opened(source, max_pixels) as (container, stream):
        found = (
            _seek(container, stream, clock, chosen)
            if clock.exact
            else _count(container, stream, chosen)
        )
        for number, frame in zip(chosen, found, strict=True):
            yield Shot(float(clock.times[number]), upright(frame))


def inspect(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> ClipInfo:
    """Size, frame times and duration; decodes at most the first frame where the container
    keeps reliable times (MP4, MOV, Matroska, WebM), every frame elsewhere.

    Raises:
        Unreadable: as `read_frames`.
        UserError: as `read_frames`.
    """
    kept: list[tuple[np.ndarray, float]] = []

    def first(times: np.ndarray, duration: float) -> np.ndarray:
        kept.append((times, duration))
        return np.zeros(1, np.int64)

    shot = next(read_frames(source, first, max_pixels=max_pixels))
    return ClipInfo(shot.image.width, shot.image.height, *kept[0])


@dataclass(frozen=True)
class _Clock:
    """Times of all frames in seconds, the duration, and for `exact` ones the container's own
    numbers: `stamps` of all frames and `keys` of those a decoder can start at."""

    times: np.ndarray
    duration: float
    exact: bool
    stamps: np.ndarray
    keys: np.ndarray


def _clock(source: str | Path | bytes, max_pixels: int) -> _Clock:
    with errors(), opened(source, max_pixels) as (container, stream):
        if set(container.format.name.split(",")) & set(_INDEXED):
            clock = _demuxed(container, stream)
            if clock is not None:
                return clock
    with errors(), opened(source, max_pixels) as (container, stream):
        return _decoded(container, stream)


def _demuxed(container: Any, stream: Any) -> _Clock | None:
    """Times from the packets, without decoding; None when some packet has none."""
    stamps, keys, steps = [], [], {}
    packets, reached = 0, 0.0
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.pts is not None and packet.time_base is not None:
            ends = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            reached = max(reached, ends)
        if packet.stream_index != stream.index:
            continue
        packets += 1
        if packet.is_corrupt:
            raise Unreadable(f"truncated: packet {packets} is damaged")
        if packet.pts is None:
            return None
        if packet.is_keyframe:
            keys.append(packet.pts)
        # Packets outside the file's edit list are decoded but never shown.
        if not packet.is_discard:
            stamps.append(packet.pts)
            steps[packet.pts] = packet.duration or 0
    if not stamps:
        raise Unreadable("no frames: the video stream is empty")
    if "mov" in container.format.name and stream.frames > packets:
        raise Unreadable(f"truncated: {packets} of {stream.frames} frames are there")
    if "matroska" in container.format.name and container.duration:
        promised = container.duration / 1e6
        if reached < promised - _TRUNCATED_SECONDS:
            raise Unreadable(f"truncated: {reached:.2f} of {promised:.2f} seconds are there")
    ordered = np.unique(np.array(stamps, np.int64))
    base = float(stream.time_base)
    times = (ordered - ordered[0]) * base
    last = steps[int(ordered[-1])] * base or _typical_step(times)
    return _Clock(times, float(times[-1] + last), True, ordered, np.unique(keys))


def _decoded(container: Any, stream: Any) -> _Clock:
    """Times from decoding every frame once, for containers that keep none or unreliable ones."""
    shown: list[int | None] = []
    sent: list[int | None] = []
    for packet in container.demux(stream):
        if packet.size:
            sent.append(packet.dts)
        shown += [frame.pts for frame in packet.decode()]
    if not shown:
        raise Unreadable("no frames: nothing in the video stream can be decoded")
    # AVI stores the order of decoding only. Frames are decoded as steadily as they are shown, so
    # the sorted decoding times are the showing times up to a shift.
    stamps = _ascending(shown) or (_ascending(sent) if len(sent) == len(shown) else None)
    if stamps is not None:
        times = (np.array(stamps, np.float64) - stamps[0]) * float(stream.time_base)
        step = _typical_step(times) or _period(stream)
    else:
        step = _period(stream)
        times = np.arange(len(shown)) * step
    empty = np.zeros(0, np.int64)
    return _Clock(times, float(times[-1] + step), False, empty, empty)


def _ascending(stamps: list[int | None]) -> list[int] | None:
    """The stamps when all are known and each is larger than the one before."""
    known = [stamp for stamp in stamps if stamp is not None]
    fine = len(known) == len(stamps) and all(a < b for a, b in pairwise(known))
    return known if fine else None


def _period(stream: Any) -> float:
    """Seconds from one frame to the next as the header says; 25 frames a second if it does not."""
    return 1 / float(stream.average_rate or stream.guessed_rate or 25)


def _typical_step(times: np.ndarray) -> float:
    steps = np.diff(times)
    steps = steps[steps > _EPSILON]
    return float(np.median(steps)) if len(steps) else 0.0


def _seek(container: Any, stream: Any, clock: _Clock, chosen: list[int]) -> Iterator[Any]:
    """The frames with the chosen stamps, jumping over what need not be decoded."""
    frames: Iterator[Any] = iter(())
    position: int | None = None
    kept: Any = None
    for number in chosen:
        stamp = int(clock.stamps[number])
        if position != stamp:
            place = int(np.searchsorted(clock.keys, stamp, side="right")) - 1
            key = int(clock.keys[place]) if place >= 0 else int(clock.stamps[0])
            if position is None or key > position:
                container.seek(key, stream=stream)
                frames = container.decode(stream)
            kept = _first_from(frames, stamp)
            if kept is None or kept.pts != stamp:
                # A seek may land behind its target; from the start nothing can be missed.
                container.seek(min(0, int(clock.stamps[0])), stream=stream)
                frames = container.decode(stream)
                kept = _first_from(frames, stamp)
            position = stamp
        if kept is None or kept.pts != stamp or kept.is_corrupt:
            raise Unreadable(
                f"broken data: the frame at {clock.times[number]:.3f} s cannot be decoded"
            )
        yield kept


def _first_from(frames: Iterator[Any], stamp: int) -> Any:
    return next((f for f in frames if f.pts is not None and f.pts >= stamp), None)


def _count(container: Any, stream: Any, chosen: list[int]) -> Iterator[Any]:
    """The frames with the chosen numbers, counted from the first."""
    frames = enumerate(container.decode(stream))
    number, frame = -1, None
    for wanted in chosen:
        while number < wanted:
            number, frame = next(frames, (wanted, None))
        if frame is None or frame.is_corrupt:
            raise Unreadable(f"broken data: frame {wanted} cannot be decoded")
        yield frame


def is_clip(source: str | Path) -> bool:
    """Whether a file is opened as a video, not as a picture or animation."""
    return not is_builtin(str(source)) and not animation.is_picture(source)
