from __future__ import annotations

import json
import os
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data import zoo

from crossadapt.data import Ledger, Unreadable, open_pixels, pixels, read_manifest
from crossadapt.data.decoding import decode
from crossadapt.errors import UserError


def save(folder: Path, *colours: tuple[int, int, int]) -> list[str]:
    paths = []
    for number, colour in enumerate(colours):
        path = folder / f"{number}.png"
        Image.new("RGB", (8, 8), colour).save(path)
        paths.append(str(path))
    return paths


def never(image: Image.Image) -> np.ndarray:
    """A transform that accepts the check on a plain picture and nothing else."""
    if image.size != (64, 48):
        pytest.fail("decoded again")
    return zoo.tiny(image)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_hundred_pictures_ten_broken(tmp_path, workers: int) -> None:
    damage = zoo.folder_of_pictures(tmp_path / "photos")
    assert len(damage) == 10
    ledger = Ledger(tmp_path / "ledger.jsonl")
    manifest = read_manifest(tmp_path / "photos", ledger=ledger)
    steps: list[tuple[int, int]] = []
    store = open_pixels(
        manifest.items,
        zoo.tiny,
        key="tiny",
        cache=tmp_path / "cache",
        workers=workers,
        ledger=ledger,
        progress=lambda *step: steps.append(step),
    )
    assert {Path(entry.item).stem for entry in ledger} == {Path(name).stem for name in damage}
    assert len(ledger) == 10
    assert int(store.readable.sum()) == 190
    assert steps == [(n + 1, len(manifest.items)) for n in range(len(manifest.items))]
    for number in np.flatnonzero(store.readable)[::17]:
        expected = zoo.tiny(decode(manifest.items[number]))
        assert (store[number] == expected).all()
    kept = manifest.without(store.unreadable)
    assert len(kept.items) == 190
    places = store.positions(kept.items)
    assert store.readable[places].all()
    assert store.batch(places[:3]).shape == (3, 3, 4, 6)
    with pytest.raises(Unreadable):
        store[int(np.flatnonzero(~store.readable)[0])]
    assert len(list(store)) == 190
    # The second time nothing is decoded, but the ledger of the new run knows.
    fresh = Ledger()
    again = open_pixels(manifest.items, never, key="tiny", cache=tmp_path / "cache", ledger=fresh)
    assert (again.readable == store.readable).all()
    assert len(fresh) == int((~store.readable).sum())
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [store.path.name]


def test_the_cache_knows_what_changed(tmp_path) -> None:
    items = save(tmp_path, (9, 9, 9), (8, 8, 8))
    cache = tmp_path / "cache"
    one = open_pixels(items, zoo.tiny, key="a", cache=cache)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(items[0])
    os.utime(items[0], (1, 1))
    two = open_pixels(items, zoo.tiny, key="a", cache=cache)
    assert (one[0][0, 0, 0], two[0][0, 0, 0]) == (9, 200)
    assert open_pixels(items, zoo.tiny, key="b", cache=cache).path != two.path
    assert len(list(cache.iterdir())) == 3


def test_damaged_cache_is_made_again(tmp_path) -> None:
    items = save(tmp_path, (9, 9, 9), (8, 8, 8))
    for name, content in (("state.json", "{"), ("pixels.npy", "x"), ("state.json", "[]")):
        path = open_pixels(items, zoo.tiny, key="a", cache=tmp_path / "c").path
        (path / name).write_text(content)
        assert open_pixels(items, zoo.tiny, key="a", cache=tmp_path / "c")[1][0, 0, 0] == 8
    state = json.loads((path / "state.json").read_text())
    assert state["unreadable"] == {}
    again = open_pixels(items, zoo.tiny, key="a", cache=tmp_path / "c", refresh=True)
    assert again[0][0, 0, 0] == 9


def test_dying_and_hanging_workers_cost_one_line_each(tmp_path) -> None:
    good = [(50 + n, 50, 50) for n in range(6)]
    items = save(tmp_path, *good[:2], zoo.DIE, *good[2:4], zoo.HANG, *good[4:])
    ledger = Ledger()
    start = time.monotonic()
    store = open_pixels(
        items, zoo.dangerous, key="d", cache=tmp_path / "c", workers=2, ledger=ledger, timeout=1.0
    )
    assert time.monotonic() - start < 30
    assert store.readable.tolist() == [True, True, False, True, True, False, True, True]
    assert ledger.summary() == {"worker died": 1, "timed out": 1}
    assert [store[i][0, 0, 0] for i in (0, 1, 3, 4, 6, 7)] == [50, 51, 52, 53, 54, 55]


def test_live_decoding_without_cache(tmp_path, monkeypatch) -> None:
    items = [*save(tmp_path, (9, 9, 9)), str(tmp_path / "gone.jpg")]
    for options in ({"cache": False}, {"cache": tmp_path / "c", "limit_bytes": 10}):
        for workers in (0, 1):
            ledger = Ledger()
            store = open_pixels(items, zoo.tiny, key="a", workers=workers, ledger=ledger, **options)
            assert not store.cached
            assert store.readable.tolist() == [True, False]
            assert store[0][0, 0, 0] == 9
            assert ledger.summary() == {"missing file": 1}
    assert "would take" in store.reason
    usage = namedtuple("usage", "total used free")(1, 1, 100)
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda path: usage)
    assert not open_pixels(items, zoo.tiny, key="a", cache=tmp_path / "c").cached
    assert not list((tmp_path / "c").iterdir())


def test_full_disk_and_interrupt_leave_nothing(tmp_path, monkeypatch) -> None:
    items = save(tmp_path, (9, 9, 9), (8, 8, 8))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for workers in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            open_pixels(
                items,
                zoo.tiny,
                key="a",
                cache=tmp_path / "c",
                workers=workers,
                progress=interrupt,
            )
    assert not list((tmp_path / "c").iterdir())

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no room for the pixel cache: No space"):
        open_pixels(items, zoo.tiny, key="a", cache=tmp_path / "c")
    assert not list((tmp_path / "c").iterdir())


def test_nothing_readable_and_wrong_transforms(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 pictures") as caught:
        open_pixels([str(tmp_path / "a.jpg")], zoo.tiny, key="a", cache=tmp_path / "c")
    assert "empty file (1)" in caught.value.fix
    items = save(tmp_path, (9, 9, 9))
    with pytest.raises(TypeError, match="uint8"):
        open_pixels(items, np.asarray, key="a", cache=False)
    with pytest.raises(UserError, match="cannot be sent to worker"):
        open_pixels(items, lambda image: zoo.tiny(image), key="a", cache=False, workers=1)


class OnlyHere:
    """Can be pickled, but not restored in another process."""

    owner = os.getpid()

    def __call__(self, image: Image.Image) -> np.ndarray:
        return zoo.tiny(image)

    def __reduce__(self):
        return (restore, (os.getpid(),))


def restore(owner: int) -> OnlyHere:
    if os.getpid() != owner:
        raise RuntimeError("not here")
    return OnlyHere()


def test_worker_that_cannot_start(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot start: RuntimeError: not here"):
        open_pixels(save(tmp_path, (1, 1, 1)), OnlyHere(), key="a", cache=False, workers=1)


def odd(image: Image.Image) -> np.ndarray:
    if image.size == (8, 8):
        raise ValueError("too plain")
    return zoo.tiny(image)


def test_failing_transform_is_a_ledger_line(tmp_path) -> None:
    items = save(tmp_path, (1, 1, 1))
    zoo.picture().save(tmp_path / "fine.png")
    ledger = Ledger()
    for workers in (0, 1):
        open_pixels(
            [*items, str(tmp_path / "fine.png")],
            odd,
            key="a",
            cache=False,
            workers=workers,
            ledger=ledger,
        )
    assert [entry.reason for entry in ledger] == ["preprocessing failed: ValueError: too plain"]
