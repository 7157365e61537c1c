"""Which frames come out of which file: times and pictures, for every odd kind of file."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data import zoo
from tests.data.video_zoo import (
    grey,
    number_of,
    set_matrix,
    write_animation,
    write_audio,
    write_video,
)

from crossadapt.data.decoding import Unreadable
from crossadapt.data.frame_choice import Sampling
from crossadapt.data.video import inspect, is_clip, read_frames

av = pytest.importorskip("av")


def taken(source: Path | bytes, rule: str, frames: int) -> list[tuple[float, int]]:
    """(time rounded to milliseconds, frame number) of what a sampling takes."""
    shots = read_frames(source, Sampling(rule, frames))
    return [(round(shot.time, 3), number_of(shot.image)) for shot in shots]


def reason(source: Path | bytes, **options: int) -> str:
    with pytest.raises(Unreadable) as caught:
        list(read_frames(source, Sampling("1fps", 4), **options))
    return caught.value.reason


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi"])
@pytest.mark.parametrize("bframes", ["0", "3"])
def test_constant_rate_with_and_without_b_frames(tmp_path, name: str, bframes: str) -> None:
    options = {"preset": "ultrafast", "g": "30", "bf": bframes}
    path = write_video(tmp_path / name, 31, options=options)
    assert taken(path, "1fps", 12) == [(0.0, 0), (1.0, 10), (2.0, 20), (3.0, 30)]
    assert taken(path, "1fps", 3) == [(0.0, 0), (1.0, 10), (3.0, 30)]
    assert taken(path, "head", 2) == [(0.0, 0), (1.0, 10)]
    assert taken(path, "tail", 2) == [(2.0, 20), (3.0, 30)]
    # Five parts of 0.62 s each; their middles are 0.31, 0.93, 1.55, 2.17, 2.79.
    middles = [(0.3, 3), (0.9, 9), (1.5, 15), (2.1, 21), (2.7, 27)]
    assert taken(path, "segments", 5) == middles
    info = inspect(path)
    assert info.times == pytest.approx(np.arange(31) / 10)
    assert info.duration == pytest.approx(3.1)
    assert (info.width, info.height) == (32, 24)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_rate_takes_what_is_on_screen(tmp_path, suffix: str) -> None:
    times = [0, 100, 150, 900, 1200, 2700, 2750, 4000, 4100]
    path = write_video(tmp_path / f"v{suffix}", 9, milliseconds=times)
    assert inspect(path).times == pytest.approx(np.array(times) / 1000)
    shown = [(0.0, 0), (0.9, 3), (1.2, 4), (2.75, 6), (4.0, 7)]
    assert taken(path, "1fps", 12) == shown
    # A slide that stays is taken as often as its seconds come.
    slides = write_video(tmp_path / f"s{suffix}", 3, milliseconds=[0, 3000, 3100])
    assert taken(slides, "1fps", 12) == [(0.0, 0), (0.0, 0), (0.0, 0), (3.0, 1)]


def test_seeks_land_on_the_frame_a_full_decode_gives(tmp_path) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(120)]
    options = {"preset": "fast", "g": "25", "bf": "3", "x264-params": "open-gop=1"}
    for suffix in (".mp4", ".mkv"):
        path = write_video(tmp_path / f"long{suffix}", pictures, rate=25, options=options)
        every = [shot.image for shot in read_frames(path, lambda times, _: np.arange(len(times)))]
        assert len(every) == 120
        for wanted in ([119], [0, 60, 61, 118], [3, 3, 24, 25, 26, 99], [74]):
            got = list(read_frames(path, lambda times, _, wanted=wanted: np.array(wanted)))
            assert [shot.time for shot in got] == pytest.approx([n / 25 for n in wanted])
            for number, shot in zip(wanted, got, strict=True):
                assert (np.asarray(shot.image) == np.asarray(every[number])).all()


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((0, 1, -1, 0), (1, 0)),  # a quarter turn clockwise: top left goes to top right
        ((0, -1, 1, 0), (0, 1)),
        ((-1, 0, 0, -1), (1, 1)),
        ((-1, 0, 0, 1), (1, 0)),
        ((1, 0, 0, -1), (0, 1)),
    ],
)
def test_rotated_and_mirrored(tmp_path, matrix, corner) -> None:
    picture = grey(0, (48, 32)).copy()
    picture[:16, :24] = 250  # top left
    path = set_matrix(write_video(tmp_path / "r.mp4", [picture] * 3), *matrix)
    image = next(read_frames(path, Sampling("1fps", 1))).image
    assert image.size == ((32, 48) if matrix[0] == 0 else (48, 32))
    quarters = np.asarray(image.convert("L").resize((2, 2), Image.Resampling.BOX))
    bright = np.unravel_index(quarters.argmax(), (2, 2))
    assert (bright[1], bright[0]) == corner
    assert inspect(path).width == image.width


def test_odd_sizes_one_frame_and_late_starts(tmp_path) -> None:
    odd = write_video(tmp_path / "odd.mp4", [grey(3, (33, 25))] * 4, pixel_format="yuv444p")
    shot = next(read_frames(odd, Sampling("1fps", 4)))
    assert (shot.image.size, number_of(shot.image)) == ((33, 25), 3)
    one = write_video(tmp_path / "one.mp4", 1)
    for rule in ("1fps", "segments", "head", "tail"):
        assert taken(one, rule, 4) == [(0.0, 0)]
    # Time counts from the first frame, whatever the container's clock says.
    late = write_video(tmp_path / "late.mkv", 12, milliseconds=[5000 + 100 * i for i in range(12)])
    assert taken(late, "1fps", 4) == [(0.0, 0), (1.0, 10)]
    assert taken(write_video(tmp_path / "sound.mp4", 11, audio_seconds=2.0), "1fps", 4) == [
        (0.0, 0),
        (1.0, 10),
    ]


def test_old_codecs_whose_clock_cannot_be_trusted(tmp_path) -> None:
    for name, codec in (("a.avi", "mpeg4"), ("a.mpg", "mpeg1video"), ("a.ts", "libx264")):
        options = {} if codec != "libx264" else None
        path = write_video(tmp_path / name, 26, rate=25, codec=codec, options=options)
        assert taken(path, "1fps", 4) == [(0.0, 0), (1.0, 25)], name
        assert inspect(path).duration == pytest.approx(1.04)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_keep_their_own_times(tmp_path, suffix: str) -> None:
    path = write_animation(tmp_path / f"a{suffix}", [300, 700, 1500, 200])
    assert not is_clip(path)
    assert inspect(path).times == pytest.approx([0, 0.3, 1.0, 2.5])
    assert inspect(path).duration == pytest.approx(2.7)
    assert taken(path, "1fps", 4) == [(0.0, 0), (1.0, 2), (1.0, 2)]
    assert taken(path, "segments", 4) == [(0.0, 0), (0.3, 1), (1.0, 2), (2.5, 3)]
    assert taken(path.read_bytes(), "segments", 2) == [(0.3, 1), (1.0, 2)]


def test_a_still_picture_is_a_clip_of_one_frame(tmp_path) -> None:
    path = tmp_path / "still.jpg"
    path.write_bytes(zoo.jpeg(Image.fromarray(grey(5))))
    for rule in ("1fps", "segments", "head", "tail"):
        assert taken(path, rule, 8) == [(0.0, 5)]
    info = inspect(path)
    assert (len(info.times), info.duration) == (1, 0.0)


def test_broken_files_say_why(tmp_path) -> None:
    assert reason(write_audio(tmp_path / "song.m4a")) == (
        "no video stream: the file holds audio only"
    )
    whole = write_video(tmp_path / "w.mp4", 60, container={"movflags": "faststart"})
    content = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) * 3 // 4])
    assert reason(cut).startswith("truncated: ")
    plain = write_video(tmp_path / "p.mp4", 60).read_bytes()
    assert reason(plain[: len(plain) // 2]).startswith("not a video: it is a video or HEIC file")
    film = write_video(tmp_path / "w.mkv", 60).read_bytes()
    assert reason(film[: len(film) // 2]).startswith("truncated: ")
    assert reason(b"") == "empty file: 0 bytes"
    assert reason(tmp_path / "nothing.mp4") == "missing file: no such file"
    assert reason(tmp_path) == "not a file: it is a folder"
    assert reason(b"\0\1noise" * 400).startswith("not a video: ")
    assert reason(whole, max_pixels=100) == "too large: 32 x 24 pixels, the limit is 100 in all"
    with pytest.raises(Unreadable, match=r"outside the clip: it starts at second 9 of 6 seconds"):
        list(read_frames(whole, Sampling("1fps", 4, (9.0, 12.0))))


@pytest.mark.parametrize("gop", ["1", "30"])
def test_damage_in_the_middle_is_noticed(tmp_path, gop: str) -> None:
    random = np.random.default_rng(1)
    noise = [random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(24)]
    path = write_video(tmp_path / "d.mp4", noise, options={"preset": "ultrafast", "g": gop})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 6000] = bytes(6000)
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=r"broken data"):
        list(read_frames(path, lambda times, _: np.arange(len(times))))


def test_a_playlist_cannot_open_other_files(tmp_path) -> None:
    secret = write_video(tmp_path / "secret.ts", 12)
    for name, text in (
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", f"ffconcat version 1.0\nfile '{secret}'\n"),
    ):
        path = tmp_path / name
        path.write_text(text)
        assert reason(path).startswith("not a video: ")
        assert reason(path.read_bytes()).startswith("not a video: ")


def test_one_picture_in_memory_at_a_time(tmp_path) -> None:
    path = write_video(tmp_path / "m.mp4", 60)
    alive: list[weakref.ref] = []
    most = 0
    for shot in read_frames(path, lambda times, _: np.arange(len(times))):
        alive.append(weakref.ref(shot.image))
        most = max(most, sum(reference() is not None for reference in alive))
        del shot
    assert len(alive) == 60
    assert most <= 2


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc")
def test_two_thousand_opens_leave_no_handle(tmp_path) -> None:
    good = write_video(tmp_path / "g.mp4", 2)
    broken = tmp_path / "b.mp4"
    broken.write_bytes(good.read_bytes()[:200])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(670):
        # One frame is taken and the rest left: the iterator is dropped half way, too.
        next(read_frames(good, Sampling("segments", 2)))
        assert reason(broken)
        list(read_frames(good, Sampling("1fps", 2)))
    assert len(os.listdir("/proc/self/fd")) == before
