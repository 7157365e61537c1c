from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data import zoo
from tests.data.video_zoo import STEP, write_animation, write_audio, write_video

from crossadapt.data import Ledger, Manifest, Unreadable
from crossadapt.data.frame_choice import Sampling
from crossadapt.data.frame_store import CachedFrames, LiveFrames, Posters
from crossadapt.data.frames import FrameReader, manifest_spans, open_frames
from crossadapt.errors import UserError

pytest.importorskip("av")


def never(image: Image.Image) -> np.ndarray:
    """A transform that accepts the check on a plain picture and nothing else."""
    if image.size != (64, 48):
        pytest.fail("decoded again")
    return zoo.tiny(image)


def numbers(pixels: np.ndarray) -> list[int]:
    """Frame numbers of decoded grey pictures (F, 3, H, W)."""
    return [round(float(picture.mean()) / STEP) for picture in pixels]


def folder(path: Path) -> list[str]:
    """Six items: a video, a short one, a GIF, a still, a song, and a file that is none."""
    write_video(path / "long.mp4", 31)
    write_video(path / "short.mkv", 12)
    write_animation(path / "a.gif", [1000, 1000, 1000])
    (path / "still.jpg").write_bytes(zoo.jpeg(Image.new("RGB", (30, 20), (40, 40, 40))))
    write_audio(path / "song.m4a")
    (path / "text.mp4").write_text("not a video")
    names = ("long.mp4", "short.mkv", "a.gif", "still.jpg", "song.m4a", "text.mp4")
    return [str(path / name) for name in names]


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_masks_and_the_ledger(tmp_path, workers: int) -> None:
    items = folder(tmp_path)
    ledger = Ledger()
    steps: list[tuple[int, int]] = []
    store = open_frames(
        items,
        zoo.tiny,
        key="tiny",
        frames=4,
        cache=tmp_path / "cache",
        workers=workers,
        ledger=ledger,
        progress=lambda *step: steps.append(step),
    )
    assert isinstance(store, CachedFrames)
    assert len(store) == 6
    assert steps == [(n + 1, 6) for n in range(6)]
    pixels, mask = store[0]
    assert pixels.shape == (4, 3, 4, 6)
    assert pixels.dtype == np.uint8
    assert mask.tolist() == [True] * 4
    assert numbers(pixels) == [0, 10, 20, 30]
    pixels, mask = store[1]
    assert mask.tolist() == [True, True, False, False]
    assert numbers(pixels) == [0, 10, 0, 0]
    assert (pixels[2:] == 0).all()
    assert numbers(store[2][0]) == [0, 1, 2, 0]
    assert store.times(2)[:3].tolist() == [0, 1, 2]
    assert np.isnan(store.times(2)[3])
    assert numbers(store[3][0]) == [5, 0, 0, 0]
    assert store[3][1].tolist() == [True, False, False, False]
    assert store.readable.tolist() == [True] * 4 + [False] * 2
    with pytest.raises(Unreadable, match="no video stream"):
        store[4]
    assert {Path(entry.item).name: entry.kind for entry in ledger} == {
        "song.m4a": "no video stream",
        "text.mp4": "not a video",
    }
    assert store.positions([items[2], items[0]]).tolist() == [2, 0]
    batch, masks = store.batch([1, 3])
    assert batch.shape == (2, 4, 3, 4, 6)
    assert masks.sum(axis=1).tolist() == [2, 1]
    posters = Posters(store)
    assert numbers(np.stack([posters[i] for i in range(4)])) == [10, 0, 1, 5]
    assert list(posters.unreadable) == items[4:]


def test_the_second_time_nothing_is_decoded_and_new_items_become_new_shards(tmp_path) -> None:
    items = folder(tmp_path)
    cache = tmp_path / "cache"
    options = {"key": "tiny", "frames": 3, "cache": cache}
    size = 3 * (3 * 4 * 6 + 8)
    first = open_frames(items[:3], zoo.tiny, shard_bytes=2 * size + 1, **options)
    assert isinstance(first, CachedFrames)
    assert len(first.paths) == 2  # two items, then one
    again = open_frames(items[2::-1], never, **options)
    assert (again[0][0] == first[2][0]).all()
    fresh = Ledger()
    steps: list[tuple[int, int]] = []
    more = open_frames(
        items, zoo.tiny, ledger=fresh, progress=lambda *step: steps.append(step), **options
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert isinstance(more, CachedFrames)
    assert set(first.paths) < set(more.paths)
    # What failed is remembered, and told to every run.
    known = Ledger()
    open_frames(items, never, ledger=known, **options)
    assert known.entries == fresh.entries
    assert len(known) == 2
    # Another setting is another cache.
    for change in ({"frames": 2}, {"sampling": "segments"}, {"key": "other"}):
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            open_frames(items, never, **{**options, **change})


def test_changed_and_damaged_files_are_decoded_again(tmp_path) -> None:
    items = folder(tmp_path)[:2]
    options = {"key": "tiny", "frames": 3, "cache": tmp_path / "cache", "sampling": "segments"}
    store = open_frames(items, zoo.tiny, **options)
    assert isinstance(store, CachedFrames)
    write_video(Path(items[1]), [np.full((24, 32, 3), 160, np.uint8)] * 5)
    os.utime(items[1], (1, 1))
    changed = open_frames(items, zoo.tiny, **options)
    assert numbers(changed[1][0]) == [20, 20, 20]
    for name, content in (("state.json", "{"), ("pixels.npy", "x"), ("state.json", "[]")):
        (store.paths[0] / name).write_text(content)
        fixed = open_frames(items, zoo.tiny, **options)
        assert isinstance(fixed, CachedFrames)
        assert numbers(fixed[0][0]) == [5, 15, 25]
        store = fixed
    # A partial folder of a killed run is not a shard.
    (store.paths[0].parent / "shard-0123456789abcdef.partial-1-2").mkdir()
    assert numbers(open_frames(items, never, **options)[0][0]) == [5, 15, 25]


def test_spans_of_items(tmp_path) -> None:
    items = folder(tmp_path)[:3]
    options = {"key": "tiny", "frames": 4, "cache": tmp_path / "cache"}
    spans = {items[0]: (1.0, 2.0), items[1]: (7.0, 9.0)}
    ledger = Ledger()
    store = open_frames(items, zoo.tiny, spans=spans, ledger=ledger, **options)
    assert numbers(store[0][0]) == [10, 20, 0, 0]
    assert store.times(0)[:2].tolist() == [1.0, 2.0]
    assert [entry.kind for entry in ledger] == ["outside the clip"]
    assert numbers(open_frames(items, zoo.tiny, **options)[0][0]) == [0, 10, 20, 30]
    with pytest.raises(UserError, match="not a part of a clip"):
        open_frames(items, zoo.tiny, spans={items[0]: (3.0, 1.0)}, **options)


def test_spans_come_from_the_manifest() -> None:
    def manifest(*rows: tuple) -> Manifest:
        names = ("item", "text", "kind", "start", "end")
        return Manifest.from_rows([dict(zip(names, row, strict=True)) for row in rows])

    rows = [("/a.mp4", "x", "video", 1, 3.5), ("/a.mp4", "y", "video", 1, 3.5)]
    rows += [("/b.mp4", "z", "video", None, 4), ("/c.mp4", "z", "video", None, None)]
    assert manifest_spans(manifest(*rows)) == {"/a.mp4": (1.0, 3.5), "/b.mp4": (0.0, 4.0)}
    with pytest.raises(UserError, match="two parts of one file"):
        manifest_spans(manifest(*rows, ("/a.mp4", "w", "video", 2, 3.5)))
    half = Manifest.from_rows([{"item": "/a.mp4", "text": "x", "kind": "video", "start": 1}])
    with pytest.raises(UserError, match="'start' but not the other"):
        manifest_spans(half)
    pictures = Manifest.from_rows([{"item": "/a.jpg", "text": "x", "start": 3}])
    assert manifest_spans(pictures) == {}


def test_without_room_or_wish_for_a_cache_frames_are_decoded_live(tmp_path) -> None:
    items = folder(tmp_path)
    ledger = Ledger()
    for options, reason in (
        ({"cache": False}, "no cache was wanted"),
        ({"cache": tmp_path / "c", "limit_bytes": 100}, "the cache would grow by"),
    ):
        store = open_frames(items, zoo.tiny, key="t", frames=4, ledger=ledger, **options)
        assert isinstance(store, LiveFrames)
        assert store.reason.startswith(reason)
        assert numbers(store[0][0]) == [0, 10, 20, 30]
        assert store[1][1].tolist() == [True, True, False, False]
    assert len(ledger) == 2


def test_errors(tmp_path) -> None:
    items = folder(tmp_path)
    with pytest.raises(UserError, match="none of the 2 clips can be read") as caught:
        open_frames(items[4:], zoo.tiny, key="t", frames=2, cache=tmp_path / "c")
    assert "no video stream (1)" in caught.value.fix
    with pytest.raises(UserError, match="no frame sampling 'midle'"):
        open_frames(items, zoo.tiny, key="t", frames=2, sampling="midle")
    with pytest.raises(TypeError, match="uint8"):
        open_frames(items, np.asarray, key="t", frames=2)


def test_a_transform_that_fails_on_one_clip_costs_that_clip(tmp_path) -> None:
    items = folder(tmp_path)[:2]

    def fussy(image: Image.Image) -> np.ndarray:
        if 244 < image.getpixel((0, 0))[0] < 255:  # the check before uses plain white
            raise ValueError("too bright")
        return zoo.tiny(image)

    write_video(tmp_path / "bright.mp4", [np.full((24, 32, 3), 250, np.uint8)] * 3)
    bright = str(tmp_path / "bright.mp4")
    store = open_frames([*items, bright], fussy, key="f", frames=2, cache=tmp_path / "c", workers=0)
    assert store.unreadable == {bright: "preprocessing failed: ValueError: too bright"}


def test_state_is_readable_and_records_are_raw(tmp_path) -> None:
    items = folder(tmp_path)[:1]
    store = open_frames(items, zoo.tiny, key="t", frames=2, cache=tmp_path / "c")
    assert isinstance(store, CachedFrames)
    state = json.loads((store.paths[0] / "state.json").read_text())
    assert state["unreadable"] == {}
    record = np.load(store.paths[0] / "pixels.npy")
    assert record.shape == (1, 2 * (3 * 4 * 6 + 8))
    direct = FrameReader(zoo.tiny, Sampling("1fps", 2), (3, 4, 6)).read_item(items[0], 10**6)
    assert (record[0] == direct).all()
