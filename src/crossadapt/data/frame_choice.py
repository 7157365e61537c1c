"""Which frames of a clip are taken: pure functions of its timestamps.

Every rule asks "which frame is on screen at second t", so it means the same at a constant and at a
variable frame rate. On a constant whole-numbered rate ``1fps`` takes exactly the frames that the
released loaders of CLIP4Clip take (arXiv 2104.08860): the first of each second, then, when there
are more than F, those at ``floor(linspace(0, n - 1, F))``. ``starts`` is the rule of
MV-Adapter's released loader (arXiv 2301.07868), which takes those at ``floor(i n / F)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crossadapt.data.decoding import Unreadable
from crossadapt.errors import UserError, did_you_mean

SAMPLINGS = {
    "1fps": "one frame a second; of more than F, F evenly spaced from the first to the last",
    "starts": "one frame a second; of more than F, the first of each of F equal parts, so that "
    "the last second is never taken",
    "head": "one frame a second; of more than F, the first F",
    "tail": "one frame a second; of more than F, the last F",
    "segments": "the clip cut into F equal parts, the frame in the middle of each; all frames "
    "of a clip that has no more than F",
}
"""The rules by name."""

WHOLE = (0.0, float("inf"))
"""The span of a whole clip, in seconds."""

# Container clocks round to about a millisecond's fraction; a frame due at second 1 may say 0.9999.
_SLACK = 1e-4

Choose = Callable[[np.ndarray, float], np.ndarray]
"""Given frame times (n,) in seconds from the first frame, ascending, and the clip's duration:
numbers of the chosen frames, ascending; a frame may occur twice."""


def shown_at(times: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Number of the frame on screen at each of `seconds`, the first frame before the first."""
    found = np.searchsorted(times, np.asarray(seconds, float) + _SLACK, side="right") - 1
    return np.clip(found, 0, len(times) - 1)


def spread(count: int, wanted: int) -> np.ndarray:
    """``floor(linspace(0, count - 1, wanted))`` in whole numbers, all when there are no more."""
    if count <= wanted:
        return np.arange(count)
    # numpy's linspace rounds 3 to 2.9999999 for some sizes; whole numbers cannot.
    return np.arange(wanted) * (count - 1) // max(1, wanted - 1)


def starts(count: int, wanted: int) -> np.ndarray:
    """``floor(i count / wanted)`` for i below `wanted`, all when there are no more."""
    return np.arange(min(count, wanted)) * count // min(count, wanted)


@dataclass(frozen=True)
class Sampling:
    """A rule with its numbers: called with (times, duration) it returns frame numbers.

    Attributes:
        rule: one of `SAMPLINGS`.
        frames: F, the largest number returned.
        span: first and last second of the file that count; both are included.
    """

    rule: str
    frames: int
    span: tuple[float, float] = WHOLE

    def __post_init__(self) -> None:
        """Refuse rules and numbers that mean nothing."""
        if self.rule not in SAMPLINGS:
            raise UserError(
                f"there is no frame sampling {self.rule!r}",
                where="sampling",
                fix=did_you_mean(self.rule, SAMPLINGS),
            )
        if self.frames < 1:
            raise UserError(f"{self.frames} frames", where="frames", fix="take at least 1")
        start, end = self.span
        if not (0 <= start < end):
            raise UserError(
                f"seconds {start:g} to {end:g} are not a part of a clip",
                where="span",
                fix="give a start of at least 0 and an end after it",
            )

    def __call__(self, times: np.ndarray, duration: float) -> np.ndarray:
        """Numbers of the chosen frames, int64, at most `frames` of them, ascending.

        Raises:
            Unreadable: the span starts after the end of the clip.
        """
        start, end = self.span
        if start > 0 and start >= duration - _SLACK:
            raise Unreadable(
                f"outside the clip: it starts at second {start:g} of {duration:.3g} seconds"
            )
        if self.rule == "segments":
            return self._segments(times, duration)
        # Second 0 always counts, also in a clip of no duration.
        seconds = np.arange(start, max(min(end + _SLACK, duration - _SLACK), start + _SLACK))
        found = shown_at(times, seconds)
        if self.rule == "1fps":
            return found[spread(len(found), self.frames)]
        if self.rule == "starts":
            return found[starts(len(found), self.frames)]
        return found[: self.frames] if self.rule == "head" else found[-self.frames :]

    def _segments(self, times: np.ndarray, duration: float) -> np.ndarray:
        start, end = self.span[0], min(self.span[1], duration)
        first = int(shown_at(times, np.array([start]))[0])
        last = int(np.searchsorted(times, end - _SLACK, side="left"))
        if last - first <= self.frames:
            return np.arange(first, max(last, first + 1))
        middles = start + (np.arange(self.frames) + 0.5) * (end - start) / self.frames
        return shown_at(times, middles)
