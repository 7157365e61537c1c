from __future__ import annotations

import numpy as np
import pytest

from crossadapt.data.decoding import Unreadable
from crossadapt.data.frame_choice import SAMPLINGS, Sampling, spread
from crossadapt.errors import UserError


def steady(seconds: float, rate: int) -> tuple[np.ndarray, float]:
    return np.arange(round(seconds * rate)) / rate, seconds


def test_the_published_indices() -> None:
    # Thirty seconds and twelve frames: the list of the CLIP4Clip note, check 7.
    assert spread(30, 12).tolist() == [0, 2, 5, 7, 10, 13, 15, 18, 21, 23, 26, 29]
    times, duration = steady(30, 25)
    chosen = Sampling("1fps", 12)(times, duration)
    assert chosen.tolist() == [25 * s for s in spread(30, 12).tolist()]


@pytest.mark.parametrize("count", [1, 2, 13, 64, 100, 997])
@pytest.mark.parametrize("wanted", [1, 2, 8, 12, 64])
def test_spread_is_floor_of_linspace(count: int, wanted: int) -> None:
    exact = [i * (count - 1) // max(1, wanted - 1) for i in range(wanted)]
    assert spread(count, wanted).tolist() == (exact if count > wanted else list(range(count)))


def test_the_indices_of_mv_adapter_never_hold_the_last() -> None:
    # Thirty seconds and twelve frames again: the list of the MV-Adapter note, check 12.
    times, duration = steady(30, 25)
    chosen = Sampling("starts", 12)(times, duration)
    assert (chosen // 25).tolist() == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]
    times, duration = steady(12, 4)
    assert Sampling("starts", 12)(times, duration).tolist() == list(range(0, 48, 4))


def test_head_tail_and_spans() -> None:
    times, duration = steady(10, 4)
    assert Sampling("head", 3)(times, duration).tolist() == [0, 4, 8]
    assert Sampling("tail", 3)(times, duration).tolist() == [28, 32, 36]
    # Both ends count, as the released loaders read them: seconds 2, 3, 4, 5.
    assert Sampling("1fps", 12, (2, 5))(times, duration).tolist() == [8, 12, 16, 20]
    assert Sampling("1fps", 12, (8, 31))(times, duration).tolist() == [32, 36]
    assert Sampling("segments", 2, (2, 6))(times, duration).tolist() == [12, 20]
    with pytest.raises(Unreadable, match="outside the clip"):
        Sampling("1fps", 12, (10, 31))(times, duration)


def test_segments_of_a_reversed_clip_are_the_reverse() -> None:
    # What the probe pairs of the generated clips rest on.
    for count in (9, 11, 13, 15):
        times, duration = steady(count / 4, 4)
        for frames in range(1, 17):
            chosen = Sampling("segments", frames)(times, duration)
            assert (count - 1 - chosen[::-1]).tolist() == chosen.tolist(), (count, frames)


@pytest.mark.parametrize("rule", SAMPLINGS)
def test_always_between_one_and_f_ascending(rule: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        times = np.cumsum(random.exponential(0.4, random.integers(1, 40)))
        times -= times[0]
        duration = float(times[-1] + random.exponential(0.4))
        frames = int(random.integers(1, 14))
        chosen = Sampling(rule, frames)(times, duration)
        assert 1 <= len(chosen) <= frames
        assert (np.diff(chosen) >= 0).all()
        assert chosen[0] >= 0
        assert chosen[-1] < len(times)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1 fps", 12), "did you mean '1fps'"),
        (("head", 0), "at least 1"),
        (("head", 2, (3.0, 3.0)), "not a part of a clip"),
        (("head", 2, (-1.0, 3.0)), "not a part of a clip"),
    ],
)
def test_bad_settings(arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(*arguments)
