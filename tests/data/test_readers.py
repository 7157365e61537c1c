from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data import zoo

from crossadapt.data import Ledger, Manifest, decode, read_manifest, reader_names
from crossadapt.errors import UserError


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zoo.jpeg(zoo.picture(number)))


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def reasons(ledger: Ledger) -> dict[str, str]:
    return {Path(entry.item).name: entry.kind for entry in ledger}


def test_sidecar(tmp_path) -> None:
    pictures(tmp_path, "a.jpg", "deep/er/b.JPG", "c.png", "c.jpg", "lonely.jpg", "e.jpg", "f.jpg")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "odd.xyz")
    pictures(tmp_path, ".hidden/h.jpg")
    texts = {"a": "one\n\n two \none\n", "deep/er/b": "\ufeffbé", "c": "both", "odd": "strange"}
    texts |= {"e": " \n", "orphan": "no picture", ".hidden/h": "hidden"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "f.txt").write_bytes(b"caf\xe9")
    ledger = Ledger()
    manifest = read_manifest(tmp_path, ledger=ledger)
    rows = {(Path(r["item"]).name, r["text"], r["group"]) for r in manifest.table.to_pylist()}
    assert rows == {
        ("a.jpg", "one", "a"),
        ("a.jpg", "two", "a"),
        ("b.JPG", "bé", "deep/er/b"),
        ("c.png", "both", "c"),
        ("c.jpg", "both", "c"),
        ("odd.xyz", "strange", "odd"),
    }
    assert all(Path(item).is_absolute() for item in manifest.items)
    assert reasons(ledger) == {
        "lonely.jpg": "image without caption",
        "e.jpg": "image without caption",
        "orphan.txt": "caption without image",
        "f.txt": "unreadable text",
        "a.jpg": "repeated row",
    }


def test_top_folders_are_splits(tmp_path) -> None:
    names = [f"{split}/{n}.jpg" for split in ("train", "valid", "test") for n in range(2)]
    pictures(tmp_path, *names)
    for name in names:
        (tmp_path / name).with_suffix(".txt").write_text(name)
    manifest = read_manifest(tmp_path)
    assert manifest.split_sizes == {"train": 2, "val": 2, "test": 2}
    assert "top folders" in manifest.summary()


def test_split_does_not_depend_on_the_place(tmp_path) -> None:
    for place in ("here", "there/below"):
        zoo.folder_of_pictures(tmp_path / place, 30, 0)
    one, two = (read_manifest(tmp_path / place) for place in ("here", "there/below"))
    assert one.table.column("split").equals(two.table.column("split"))
    assert one.fingerprint == two.fingerprint
    assert read_manifest(tmp_path / "here", split_seed=1).fingerprint != one.fingerprint


# Inside a folder only metadata.csv, .jsonl and .parquet are looked for; the others can be named.
@pytest.mark.parametrize(
    ("suffix", "inside"),
    [
        *((suffix, True) for suffix in ("csv", "jsonl", "parquet")),
        *((suffix, False) for suffix in ("csv", "tsv", "jsonl", "parquet", "json")),
    ],
)
def test_tables(tmp_path, suffix: str, inside: bool) -> None:
    pictures(tmp_path, "a.jpg", "sub/b.jpg", "extra.jpg")
    rows = [
        {"file_name": "a.jpg", "text": "a, or alpha", "price": 3, "split": "train"},
        {"file_name": "a.jpg", "text": "first", "price": 3, "split": "train"},
        {"file_name": "sub/b.jpg", "text": "b", "price": 4, "split": "validation"},
        {"file_name": "gone.jpg", "text": "c", "price": 5, "split": "test"},
    ]
    path = tmp_path / f"{'metadata' if inside else 'list'}.{suffix}"
    if suffix in ("csv", "tsv"):
        write_csv(path, rows, "\t" if suffix == "tsv" else ",")
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n[1]\n")
    elif suffix == "json":
        path.write_text(json.dumps([*rows, 1]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    ledger = Ledger()
    manifest = read_manifest(tmp_path if inside else path, ledger=ledger)
    assert manifest.texts == ["a, or alpha", "first", "b"]
    assert manifest.split_sizes == {"train": 2, "val": 1}
    assert [int(v) for v in manifest.table.column("price").to_pylist()] == [3, 3, 4]
    assert manifest.groups.tolist() == [0, 0, 1]
    found = reasons(ledger)
    assert found["gone.jpg"] == "caption without image"
    assert ("extra.jpg" in found) == inside
    assert ("broken line" in ledger.summary()) == (suffix == "jsonl")


def test_list_of_texts_and_columns_mapping(tmp_path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    rows = [
        {"foto": "a.jpg", "words": ["x", "y", ""], "cluster": 7, "nested": {"k": 1}},
        {"foto": "b.jpg", "words": ["z"], "cluster": 8, "nested": {"k": 2}},
        {"foto": None, "words": ["z"], "cluster": 8, "nested": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    columns = {"item": "foto", "text": "words", "group": "cluster"}
    ledger = Ledger()
    manifest = read_manifest(tmp_path, columns=columns, ledger=ledger)
    assert manifest.texts == ["x", "y", "z"]
    assert manifest.group_names == ["7", "8"]
    assert manifest.attributes == []
    assert ledger.summary() == {"no picture": 1}
    with pytest.raises(UserError, match="did you mean 'foto'"):
        read_manifest(tmp_path, columns={"item": "fotto", "text": "words"})
    with pytest.raises(UserError, match="did you mean 'text'"):
        read_manifest(tmp_path, columns={"item": "foto", "texts": "words"})
    with pytest.raises(UserError, match="no column was recognised as the item"):
        read_manifest(tmp_path)


def test_unrecognised_column_names_the_nearest(tmp_path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    write_csv(tmp_path / "metadata.csv", [{"file_name": "a.jpg", "captoin": "x", "n": 1}])
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path)
    assert "columns={'text': 'captoin'}" in caught.value.fix
    assert "file_name, captoin, n" in caught.value.where


def test_metadata_in_split_folders(tmp_path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / split, *(f"{n}.jpg" for n in range(12)))
        rows = [{"file_name": f"{n}.jpg", "text": f"{split} {n}"} for n in range(12)]
        write_csv(tmp_path / split / "metadata.csv", rows)
    manifest = read_manifest(tmp_path)
    assert manifest.split_sizes["test"] == 12
    assert manifest.split_sizes["train"] + manifest.split_sizes["val"] == 12
    assert "no val split: 10 % of train" in manifest.summary()


def test_semicolons_ragged_lines_remote_and_partly_split(tmp_path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    path = tmp_path / "list.csv"
    path.write_text("image;caption\na.jpg;x\nb.jpg;y\nb.jpg;y;z\nhttp://x/y.jpg;r\n")
    ledger = Ledger()
    assert read_manifest(path, ledger=ledger).texts == ["x", "y"]
    assert ledger.summary() == {"broken line": 1, "remote picture": 1}
    path.write_text("image;caption;split\na.jpg;x;train\nb.jpg;y;\n")
    with pytest.raises(UserError, match="1 of 2 rows have no split"):
        read_manifest(path)
    path.write_bytes(b"image;caption\na.jpg;caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_manifest(path)


def test_pictures_inside_a_table(tmp_path) -> None:
    raw = [zoo.jpeg(zoo.picture(n)) for n in range(3)]
    rows = [{"image": {"bytes": b, "path": None}, "caption": f"c{n}"} for n, b in enumerate(raw)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    manifest = read_manifest(tmp_path / "x.parquet")
    assert [Path(item).read_bytes() for item in manifest.items] == raw
    assert decode(manifest.items[0]).size == (32, 24)


def karpathy(folder: Path, coco: bool) -> Path:
    images = []
    for number, split in enumerate(["train", "restval", "val", "test", "test"]):
        entry = {"imgid": number, "filename": f"{number}.jpg", "split": split}
        if coco:
            entry |= {"filepath": "val2014", "cocoid": 10 + number}
        entry["sentences"] = [{"raw": f"text {number} {s}", "sentid": s} for s in range(5)]
        images.append(entry)
    images.append({"filename": "x.jpg"})
    where = "val2014" if coco else "flickr30k-images"
    pictures(folder, *(f"{where}/{n}.jpg" for n in range(5)))
    path = folder / f"dataset_{'coco' if coco else 'flickr30k'}.json"
    path.write_text(json.dumps({"dataset": "x", "images": images}))
    return path


@pytest.mark.parametrize("coco", [True, False])
def test_karpathy(tmp_path, coco: bool) -> None:
    path = karpathy(tmp_path, coco)
    ledger = Ledger()
    manifest = read_manifest(path, ledger=ledger)
    assert manifest.split_sizes == {"train": 10, "val": 5, "test": 10}
    assert len(manifest.group_names) == 5
    assert ledger.summary() == {"broken entry": 1}
    assert "restval 1, test 2, train 1, val 1" in manifest.summary()
    assert read_manifest(tmp_path).fingerprint == manifest.fingerprint
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(path, moved)
    assert (
        len(
            read_manifest(
                moved / path.name,
                root=path.parent / "flickr30k-images" if not coco else path.parent,
            )
        )
        == 25
    )
    with pytest.raises(UserError, match="none of the pictures") as caught:
        read_manifest(moved)
    assert "root=" in caught.value.fix


def test_datasets_library(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "captions": datasets.Sequence(datasets.Value("string")),
            "n": datasets.Value("int32"),
        }
    )

    def part(start: int) -> datasets.Dataset:
        rows = range(start, start + 3)
        data = {
            "photo": [zoo.picture(n) for n in rows],
            "captions": [[f"one {n}", f"two {n}"] for n in rows],
            "n": list(rows),
        }
        return datasets.Dataset.from_dict(data, features=features)

    both = datasets.DatasetDict({"train": part(0), "validation": part(3), "test": part(6)})
    both.save_to_disk(str(tmp_path / "dict"))
    for source in (tmp_path / "dict", f"hf:{tmp_path / 'dict'}"):
        manifest = read_manifest(source)
        assert manifest.split_sizes == {"train": 6, "val": 6, "test": 6}
        assert manifest.attributes == ["n"]
        assert decode(manifest.items[0]).tobytes() == zoo.picture(0).tobytes()
    part(0).save_to_disk(str(tmp_path / "one"))
    assert len(read_manifest(tmp_path / "one").split_sizes) == 3
    with pytest.raises(UserError, match="cannot load"):
        read_manifest("hf:" + str(tmp_path / "nowhere"))


def test_written_manifest(tmp_path) -> None:
    zoo.folder_of_pictures(tmp_path / "data", 12, 0)
    manifest = read_manifest(tmp_path / "data")
    manifest.write(tmp_path / "data" / "m.parquet")
    (tmp_path / "data").rename(tmp_path / "moved")
    again = read_manifest(tmp_path / "moved" / "m.parquet")
    assert again.fingerprint == read_manifest(tmp_path / "moved").fingerprint
    assert again.notes == manifest.notes
    assert again.texts == manifest.texts
    assert Path(again.items[0]).parent == tmp_path / "moved"


def test_errors_that_name_what_and_how(tmp_path) -> None:
    pictures(tmp_path / "photos", "a.jpg", "b.jpg")
    with pytest.raises(UserError, match="did you mean 'photos'"):
        read_manifest(tmp_path / "photo")
    with pytest.raises(UserError, match="did you mean 'openmoji'"):
        read_manifest("openmojis")
    with pytest.raises(UserError, match="neither metadata"):
        read_manifest(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="folder is empty"):
        read_manifest(tmp_path / "empty")
    (tmp_path / "photos" / "a.txt").write_text("a")
    with pytest.raises(UserError, match="one item only"):
        read_manifest(tmp_path / "photos")
    with pytest.raises(UserError, match="not understood"):
        read_manifest(tmp_path / "photos" / "a.jpg")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="no list 'images'"):
        read_manifest(tmp_path / "x.json")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(UserError, match="cannot be read"):
        read_manifest(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="did you mean 'sidecar'"):
        read_manifest(tmp_path, reader="side-car")
    with pytest.raises(UserError, match="root="):
        read_manifest(tmp_path, root=tmp_path / "nowhere")
    (tmp_path / "only.csv").write_text("file_name,text\n")
    with pytest.raises(UserError, match="no item with a text"):
        read_manifest(tmp_path / "only.csv")
    sets = ["activitynet", "didemo", "karpathy", "lsmdc", "msrvtt", "msrvtt-7k", "msrvtt-full"]
    sets += ["msvd", "vatex"]
    classes = ["openmoji-groups", "coop", "fgvc-aircraft", "imagenet"]
    assert reader_names() == [
        "openmoji",
        *classes,
        "hf",
        "manifest",
        *sets,
        "table",
        "sidecar",
        "class-folder",
    ]


def test_manifest_rules() -> None:
    good = [{"item": "/a", "text": "x", "split": "train"}, {"item": "/b", "text": "y"}]
    manifest = Manifest.from_rows([{**good[0], "n": 1}, {**good[1], "n": "two"}])
    assert manifest.table.column("n").to_pylist() == ["1", "two"]
    assert manifest.where(n="two").items == manifest.without(["/a"]).items == ["/b"]
    assert manifest.item_groups.tolist() == [0, 1]
    reordered = manifest.take([1, 0])
    assert reordered.items == ["/b", "/a"]
    assert reordered.fingerprint == manifest.fingerprint
    assert manifest.with_splits(["val", "val"]).fingerprint != manifest.fingerprint
    with pytest.raises(UserError, match="no split 'tran'"):
        manifest.select("tran")
    with pytest.raises(UserError, match="no attribute"):
        manifest.where(m=1)
    for bad, message in (
        ([*good, good[0]], "the same text twice"),
        ([{"item": "/a", "text": "  "}], "empty text"),
        ([{"item": "", "text": "x"}], "empty item"),
        ([{"item": "/a", "text": "x", "kind": "sound"}], "unknown kind"),
        ([*good, {"item": "/a", "text": "z", "group": "g"}], "one group"),
        ([*good, {"item": "/a", "text": "z", "split": "test"}], "one split"),
    ):
        with pytest.raises(UserError, match=message):
            Manifest.from_rows(bad)
    with pytest.raises(UserError, match="needs the columns"):
        Manifest(pa.table({"item": ["a"]}))
