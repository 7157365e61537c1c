from __future__ import annotations

import json
import time
from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data import zoo

from crossadapt.data import Ledger, Manifest, find_duplicates, open_pixels
from crossadapt.data.duplicates import difference_hash, near_pairs, normalised, thumbnail


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=2)), max_size=25))
def test_near_pairs_equal_brute_force(specs) -> None:
    bases = np.random.default_rng(0).integers(0, 2**63, 4, dtype=np.uint64)
    hashes = np.array(
        [bases[b] ^ np.uint64(sum(1 << bit for bit in flips)) for b, flips in specs], np.uint64
    )
    for distance in (0, 1, 2):
        brute = [
            pair
            for pair in combinations(range(len(hashes)), 2)
            if int(hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= distance
        ]
        assert [tuple(pair) for pair in near_pairs(hashes, distance).tolist()] == brute


def test_fifty_thousand_hashes_take_no_time() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 50_000, dtype=np.uint64)
    hashes[40_000:] = hashes[:10_000] ^ np.uint64(5)
    start = time.monotonic()
    assert len(near_pairs(hashes)) == 10_000
    assert time.monotonic() - start < 5


def test_hash_survives_resizing_and_jpeg_but_tells_pictures_apart(tmp_path) -> None:
    smooth = Image.Resampling.BICUBIC
    images = [zoo.picture(n).resize((4, 3)).resize((160, 120), smooth) for n in range(6)]
    same = images[1].resize((80, 60), smooth)
    red, blue = (Image.new("RGB", (50, 50), colour) for colour in ("red", "blue"))
    names = {
        **{f"{n}.png": (image, "train") for n, image in enumerate(images)},
        "copy.jpg": (same, "test"),
        "red.png": (red, "train"),
        "blue.png": (blue, "test"),
    }
    rows = []
    for number, (name, (image, split)) in enumerate(names.items()):
        image.save(tmp_path / name)
        rows.append({"item": str(tmp_path / name), "text": f"text {number}", "split": split})
    (tmp_path / "broken.jpg").write_bytes(b"")
    rows.append({"item": str(tmp_path / "broken.jpg"), "text": "b", "split": "val"})
    rows.append({"item": str(tmp_path / "1.png"), "text": "Text, 2!", "split": "train"})
    rows.append({"item": str(tmp_path / "red.png"), "text": "TEXT 8", "split": "train"})
    manifest = Manifest.from_rows(rows)
    ledger = Ledger()
    report = find_duplicates(manifest, ledger=ledger)
    assert [cluster.members for cluster in report.pictures] == [
        (str(tmp_path / "1.png"), str(tmp_path / "copy.jpg"))
    ]
    assert report.pictures[0].splits == ("test", "train")
    assert len(report.captions) == 2
    assert [cluster.text for cluster in report.caption_leaks] == ["text 8"]
    assert report.items == 9
    assert len(ledger) == 1
    text = report.render()
    assert "9 pictures: 1 sets of look-alikes, 1 across splits" in text
    assert "look alike in test and train: 1.png, copy.jpg" in text
    assert json.loads(json.dumps(report.to_dict()))["picture_leaks"] == 1
    # Pixels that are there already serve as well.
    store = open_pixels(manifest.items, big, key="big")
    assert find_duplicates(manifest, store=store).pictures == report.pictures


def big(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((96, 96))).transpose(2, 0, 1)


def test_hash_and_texts() -> None:
    ramp = np.tile(np.linspace(255, 0, 90, dtype=np.uint8), (80, 1))
    small = thumbnail(Image.fromarray(ramp).convert("RGB"))
    assert difference_hash(small[None]).tolist() == [2**64 - 1]
    assert difference_hash(small[None, :, :, ::-1]).tolist() == [0]
    assert difference_hash(np.zeros((0, 3, 32, 36), np.uint8)).shape == (0,)
    assert normalised("  A RED\tdoor!! ") == normalised("a red_door") == "a red door"
    assert normalised("!!") == "!!"


def test_same_group_is_no_duplicate(tmp_path) -> None:
    rows = []
    for number in range(2):
        zoo.picture(1).save(tmp_path / f"{number}.png")
        item = str(tmp_path / f"{number}.png")
        rows.append({"item": item, "text": "x", "group": "g", "split": "train"})
    report = find_duplicates(Manifest.from_rows(rows))
    assert report.pictures == report.captions == ()
