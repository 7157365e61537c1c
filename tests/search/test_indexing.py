"""Indexing jobs: what is stored, what a second run does, kills, failures, refusals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tests.adapting import train
from tests.search import pictures

import crossadapt
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import save_backbone
from crossadapt.errors import UserError
from crossadapt.search.collection import Collections
from crossadapt.search.embedder import Embedder
from crossadapt.search.indexing import IndexJob, run_index

NAME = "shapes"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny backbone in a folder, from which every process loads the very same."""
    return str(save_backbone(crossadapt.load("tiny:clip"), tmp_path_factory.mktemp("backbone")))


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """Two small trained adapters of it."""
    made = []
    for seed in (1, 2):
        backbone = crossadapt.load(model)
        config = make_config("cross-modal-adapter", {"r": 4, "d_s": 6})
        train(backbone, crossadapt.attach(backbone, config, seed=seed), steps=3)
        folder = tmp_path_factory.mktemp("adapters") / f"a{seed}"
        made.append(crossadapt.save_adapter(backbone, "default", folder))
    return made


@pytest.fixture
def index(model):
    """Runs a job on the tiny backbone, in this process unless told otherwise."""

    def run(store, *paths, console=None, **options):
        values = {
            "backbone": model,
            "workers": 0,
            "quiet": console is None,
            "device": "cpu",
            "batch_size": 16,
            **options,
        }
        job = IndexJob([str(p) for p in paths], NAME, store=str(store), **values)
        return run_index(job, console=console)

    return run


def rows(store, name=NAME):
    """All rows by id, without the time of their making."""
    collection = Collections(str(store)).open(name)
    names = [n for n in collection.card.schema.names if n != "added"]
    found = [row for batch in collection.scan(names) for row in batch.to_pylist()]
    ids = [row["id"] for row in found]
    assert len(set(ids)) == len(ids) == len(collection)
    return {row["id"]: row for row in found}


def same(found, wanted):
    """Equal rows, vectors to 1e-6."""
    assert found.keys() == wanted.keys()
    for name, row in wanted.items():
        for column, value in row.items():
            if column.startswith("vector_"):
                np.testing.assert_allclose(found[name][column], value, atol=1e-6, rtol=0)
            else:
                assert found[name][column] == value, (column, row["item"])


def by_item(found):
    return {Path(row["item"]).name: row for row in found.values()}


def test_rows_hold_what_the_page_and_the_model_need(tmp_path, adapters, index):
    folder = pictures.folder(tmp_path / "in", 20)
    (folder / "red/00003.txt").write_text("a red thing\na second caption\n")
    report = index(tmp_path / "store", folder, adapters=[f"mine={adapters[0]}"])
    assert (report.found, report.embedded, report.rows) == (20, 20, 20)
    assert (report.failed, report.duplicates) == (0, 0)
    found = by_item(rows(tmp_path / "store"))
    row = found["00003.png"]
    content = (folder / "red/00003.png").read_bytes()
    assert row["texts"] == ["a red thing", "a second caption"]
    assert (row["kind"], row["width"], row["height"]) == ("image", 51, 48)
    assert row["bytes"] == len(content)
    assert row["item"] == str(folder / "red/00003.png")
    assert row["modified"] == (folder / "red/00003.png").stat().st_mtime
    assert found["00004.png"]["texts"] == []
    small = Image.open(io.BytesIO(row["thumbnail"]))
    assert small.format == "JPEG"
    assert small.size == (51, 48)
    embedder = Embedder.open(None, {"mine": adapters[0]}, device="cpu")
    pixels = embedder.prepare(pictures.render(3))[None]
    for view in ("frozen", "mine"):
        vector = embedder.pictures(pixels, view)[0]
        np.testing.assert_allclose(row[f"vector_{view}"], vector, atol=1e-6)
    card = Collections(str(tmp_path / "store")).open(NAME).card
    assert card.default_view == "mine"
    assert card.view("mine").fingerprint == embedder.fingerprint("mine")
    assert card.facts["sources"] == [str(folder)]


def test_large_pictures_have_small_thumbnails(tmp_path, index):
    (tmp_path / "in").mkdir()
    pictures.render(1).resize((1200, 300)).save(tmp_path / "in/wide.jpg")
    index(tmp_path / "store", tmp_path / "in")
    [row] = rows(tmp_path / "store").values()
    assert (row["width"], row["height"]) == (1200, 300)
    assert Image.open(io.BytesIO(row["thumbnail"])).size == (256, 64)


def test_a_second_run_embeds_only_what_is_new_or_changed(tmp_path, monkeypatch, index):
    folder = pictures.folder(tmp_path / "in", 24)
    store = tmp_path / "store"
    index(store, folder)
    first = rows(store)
    passes = []
    plain = Embedder.pictures
    monkeypatch.setattr(
        Embedder, "pictures", lambda self, x, v="frozen": passes.append(len(x)) or plain(self, x, v)
    )
    report = index(store, folder)
    assert (report.already, report.embedded, report.updated, passes) == (24, 0, 0, [])
    same(rows(store), first)

    (folder / "red/00000.png").write_bytes(pictures.encoded(100))  # other content
    os.utime(folder / "red/00003.png", (1, 1))  # same content, other time
    (folder / "green/00001.png").rename(folder / "green/moved.png")
    (folder / "blue/00002.txt").write_text("a new caption")
    pictures.folder(folder, 2, start=50)
    report = index(store, folder)
    assert (report.embedded, passes) == (3, [3])
    assert (report.replaced, report.updated, report.rows) == (1, 3, 26)
    fresh = tmp_path / "fresh"
    index(fresh, folder)
    same(rows(store), rows(fresh))
    assert by_item(rows(store))["00002.png"]["texts"] == ["a new caption"]


def test_prune_drops_what_is_gone_and_nothing_else(tmp_path, index):
    folder = pictures.folder(tmp_path / "in", 12)
    store = tmp_path / "store"
    index(store, folder)
    for name in ("red/00000.png", "green/00001.png"):
        (folder / name).unlink()
    assert index(store, folder).rows == 12
    broken = folder / "blue/00002.png"
    broken.chmod(0o000)
    report = index(store, folder, prune=True)
    assert (report.pruned, report.rows) == (2, 10)
    assert "00002.png" in by_item(rows(store))


def test_equal_contents_are_one_row_that_the_first_path_names(tmp_path, index):
    folder = pictures.folder(tmp_path / "in", 6)
    (folder / "z").mkdir()
    (folder / "z/z.png").write_bytes(pictures.encoded(4))
    store = tmp_path / "store"
    report = index(store, folder)
    assert (report.found, report.rows, report.duplicates, report.left_out) == (7, 6, 1, {})
    lines = [json.loads(line) for line in Path(report.ledger).read_text().splitlines()]
    assert [(Path(e["item"]).name, e["stage"]) for e in lines] == [("z.png", "duplicate")]
    assert "00004.png" in lines[0]["reason"]
    again = index(store, folder)
    assert (again.embedded, again.updated, again.duplicates, again.rows) == (0, 0, 1, 6)
    # A path that comes earlier takes the row over, as it would in a run from nothing.
    (folder / "a.png").write_bytes(pictures.encoded(4))
    index(store, folder)
    fresh = tmp_path / "fresh"
    index(fresh, folder)
    same(rows(store), rows(fresh))


def run_killed(model, store, folder, moment, count, *options):
    """Index in a process that ends itself by SIGKILL."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.search.pictures", moment, str(count), str(folder)]
    command += ["--collection", NAME, "--store", str(store), "--backbone", model]
    result = subprocess.run(
        [*command, "--batch-size", "16", "--device", "cpu", *options],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr


def test_killed_and_resumed_equals_never_killed(tmp_path, model, adapters, index):
    folder = pictures.folder(tmp_path / "in", 200)
    (folder / "red/broken.png").write_bytes(b"no picture")
    options = [f"mine={adapters[0]}"]
    index(tmp_path / "whole", folder, adapters=options)
    store = tmp_path / "killed"
    flags = ("--adapter", options[0])
    run_killed(model, store, folder, "embedding", 10, *flags, "--workers", "1")
    first = len(rows(store))
    run_killed(model, store, folder, "upserted", 2, *flags, "--workers", "0")
    second = len(rows(store))
    assert 0 < first < second < 200
    out = io.StringIO()
    index(store, folder, console=Console(file=out, width=200))
    assert f"{second:,} already done" in out.getvalue()
    same(rows(store), rows(tmp_path / "whole"))
    report = index(store, folder, adapters=options)
    assert (report.already, report.embedded, report.failed) == (200, 0, 1)


def test_killed_while_a_view_is_added(tmp_path, model, adapters, index):
    folder = pictures.folder(tmp_path / "in", 100)
    store = tmp_path / "store"
    index(store, folder)
    before = rows(store)
    adapter = f"mine={adapters[0]}"
    run_killed(model, store, folder, "upserted", 2, "--adapter", adapter, "--workers", "0")
    missing = [r for r in rows(store).values() if r["vector_mine"] is None]
    assert 0 < len(missing) < 100
    # The next run need not be told again what it was about.
    report = index(store, folder)
    assert report.embedded == len(missing)
    index(tmp_path / "whole", folder, adapters=[adapter])
    found = rows(store)
    same(found, rows(tmp_path / "whole"))
    assert all(found[name]["vector_frozen"] == row["vector_frozen"] for name, row in before.items())
    assert index(store, folder).embedded == 0


def test_another_adapter_under_the_same_name_embeds_that_view_again(tmp_path, adapters, index):
    folder = pictures.folder(tmp_path / "in", 10)
    store = tmp_path / "store"
    index(store, folder, adapters=[f"mine={adapters[0]}"])
    report = index(store, folder, adapters=[f"mine={adapters[1]}"])
    assert report.embedded == 10
    index(tmp_path / "fresh", folder, adapters=[f"mine={adapters[1]}"])
    same(rows(store), rows(tmp_path / "fresh"))
    # Also when it is the only view there is.
    for adapter in adapters:
        report = index(tmp_path / "one", folder, adapters=[f"mine={adapter}"], frozen=False)
        assert report.embedded == report.rows == 10


def test_views_are_not_left_incomplete(tmp_path, adapters, index):
    store = tmp_path / "store"
    one = pictures.folder(tmp_path / "one", 4)
    index(store, one)
    two = pictures.folder(tmp_path / "two", 4, start=10)
    with pytest.raises(UserError, match=r"4 rows .* not among the sources") as caught:
        index(store, two, adapters=[f"mine={adapters[0]}"])
    assert str(one) in caught.value.fix
    report = index(store, one, two, adapters=[f"mine={adapters[0]}"])
    assert report.rows == 8
    assert all(row["vector_mine"] is not None for row in rows(store).values())


def test_new_items_get_all_views_and_lost_adapters_are_named(tmp_path, adapters, index):
    import shutil

    adapter = shutil.copytree(adapters[0], tmp_path / "adapter")
    store = tmp_path / "store"
    folder = pictures.folder(tmp_path / "in", 4)
    index(store, folder, adapters=[str(adapter)])
    pictures.folder(folder, 1, start=9)
    assert index(store, folder).embedded == 1
    assert all(row["vector_adapter"] is not None for row in rows(store).values())
    shutil.rmtree(adapter)
    with pytest.raises(UserError, match="adapter of view 'adapter' is gone"):
        index(store, folder)
    shutil.copytree(adapters[1], adapter)
    with pytest.raises(UserError, match="has changed since") as caught:
        index(store, folder)
    assert f"--adapter adapter={adapter}" in caught.value.fix


def test_another_backbone_is_refused_with_the_command(tmp_path, index):
    folder = pictures.folder(tmp_path / "in", 4)
    store = tmp_path / "store"
    index(store, folder)
    before = rows(store)
    with pytest.raises(UserError, match="made with another backbone") as caught:
        index(store, folder, backbone="tiny:siglip")
    assert f"crossadapt collection drop {NAME} --store {store}" in caught.value.fix
    assert f"crossadapt index {folder} --collection {NAME}" in caught.value.fix
    same(rows(store), before)


def test_failures_are_tried_twice_then_listed(tmp_path, monkeypatch, index):
    from crossadapt.search.thumbnails import PictureReader

    folder = pictures.folder(tmp_path / "in", 3)
    (folder / "cut.png").write_bytes(pictures.encoded(7)[:100])
    (folder / "paper.jpg").write_bytes(b"%PDF-1.7 nothing to see")
    (folder / "empty.png").write_bytes(b"")
    Image.new("1", (30_000, 30_000)).save(folder / "huge.png")
    (folder / "clip.mp4").write_bytes(b"video")
    asked = []
    plain = PictureReader.read_task

    def counted(self, item, *rest):
        asked.append(Path(item).name)
        return plain(self, item, *rest)

    monkeypatch.setattr(PictureReader, "read_task", counted)
    store = tmp_path / "store"
    report = index(store, folder)
    assert (report.rows, report.failed) == (3, 5)
    assert sorted(asked) == sorted(
        [f"{i:05d}.png" for i in range(3)] + ["cut.png", "empty.png", "huge.png", "paper.jpg"] * 2
    )
    assert report.left_out == {
        "not a video": 1, "truncated": 1, "empty file": 1, "too large": 1, "not a picture": 1
    }  # fmt: skip
    lines = [json.loads(line) for line in Path(report.ledger).read_text().splitlines()]
    reasons = {Path(line["item"]).name: line["reason"] for line in lines}
    assert "PDF" in reasons["paper.jpg"]
    assert report.ledger == str(store / f"{NAME}.ledger.jsonl")
    facts = Collections(str(store)).open(NAME).card.facts
    assert facts["ledger"]["count"] == 5
    # What is repaired leaves the ledger.
    (folder / "cut.png").write_bytes(pictures.encoded(7))
    (folder / "paper.jpg").unlink()
    report = index(store, folder, ledger=store / f"{NAME}.ledger.jsonl")
    assert set(report.left_out) == {"not a video", "empty file", "too large"}
    assert report.rows == 4


def test_a_stuck_and_a_dying_worker_are_named(tmp_path, monkeypatch, index):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "awkward_pictures.py").write_text(
        "import os, time, numpy as np\n"
        "class Awkward:\n"
        "    def __init__(self, plain): self.plain = plain\n"
        "    def __call__(self, image):\n"
        "        if image.size == (11, 11): time.sleep(600)\n"
        "        if image.size == (13, 13): os._exit(7)\n"
        "        return self.plain(image)\n"
    )
    import awkward_pictures

    folder = pictures.folder(tmp_path / "in", 6)
    for side in (11, 13):
        pictures.render(side).resize((side, side)).save(folder / f"{side}.png")
    plain = Embedder.open.__func__

    def opened(cls, *args, **options):
        embedder = plain(cls, *args, **options)
        transform = awkward_pictures.Awkward(embedder.backbone.preprocess.array)
        embedder.backbone.preprocess = Preprocess(embedder.backbone.preprocess, transform)
        return embedder

    monkeypatch.setattr(Embedder, "open", classmethod(opened))
    report = index(tmp_path / "store", folder, workers=1, timeout=1.0)
    assert report.rows == 6
    assert report.left_out == {"timed out": 1, "worker died": 1}
    names = {Path(json.loads(line)["item"]).name: json.loads(line)["reason"]
             for line in Path(report.ledger).read_text().splitlines()}  # fmt: skip
    assert names["11.png"].startswith("timed out")
    assert names["13.png"].startswith("worker died")


class Preprocess:
    """A backbone's preparation with another picture half."""

    def __init__(self, plain, array):
        self.plain, self.array = plain, array

    def __getattr__(self, name):
        return getattr(self.plain, name)


def test_ctrl_c_saves_what_was_embedded(tmp_path, monkeypatch, index):
    folder = pictures.folder(tmp_path / "in", 60)
    plain, calls = Embedder.pictures, []

    def interrupted(self, x, view="frozen"):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, x, view)

    monkeypatch.setattr(Embedder, "pictures", interrupted)
    with pytest.raises(KeyboardInterrupt, match="32 items are stored"):
        index(tmp_path / "store", folder)
    monkeypatch.setattr(Embedder, "pictures", plain)
    report = index(tmp_path / "store", folder)
    assert (report.already, report.embedded, report.rows) == (32, 28, 60)


def test_progress_tells_rate_time_left_skipped_and_failed(tmp_path, monkeypatch, index):
    from crossadapt.search import progress

    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    folder = pictures.folder(tmp_path / "in", 10)
    (folder / "bad.png").write_bytes(b"x")
    store = tmp_path / "store"
    said = []
    for _ in range(2):
        out = io.StringIO()
        index(store, folder, console=Console(file=out, width=200))
        said.append(out.getvalue())
        pictures.folder(folder, 3, start=20)
    assert "11/11" in said[0]
    assert "items/s  0 skipped  1 failed" in said[0]
    assert " left\n" in said[0]
    assert f"left out: {folder}/bad.png: not a picture" in said[0].replace("\n", "")
    assert "10 already done" in said[1]
    assert "10 skipped  1 failed" in said[1]


def test_attributes_keep_their_types(tmp_path, index):
    folder = pictures.folder(tmp_path / "in", 3)
    table = folder / "metadata.csv"
    head = "file_name,text,year,price,sold,code,split\n"
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*.png"))]
    lines = [f"{f},a shape,20{i}0,{i}.5,true,00{i},train\n" for i, f in enumerate(files)]
    table.write_text(head + "".join(lines))
    store = tmp_path / "store"
    index(store, folder)
    card = Collections(str(store)).open(NAME).card
    assert card.attributes == {
        "year": "int", "price": "float", "sold": "bool", "code": "string", "split": "string"
    }  # fmt: skip
    row = by_item(rows(store))[files[1].name]
    values = [row[f"attr_{name}"] for name in ("year", "price", "sold", "code", "split")]
    assert values == [2010, 1.5, True, "001", "train"]

    table.write_text(head + "".join(lines).replace("2010", "2011"))
    report = index(store, folder)
    assert (report.embedded, report.updated) == (0, 1)
    assert by_item(rows(store))[files[1].name]["attr_year"] == 2011

    before = rows(store)
    table.write_text(head + "".join(lines).replace("2010", "old"))
    with pytest.raises(UserError, match=r"'year' changes its type: 'old' is not int"):
        index(store, folder)
    (folder / "metadata.csv").unlink()
    records = [{"file_name": str(f), "text": "a", "year": "x"} for f in files]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(UserError, match=r"the collection has int, 'x' is string"):
        index(store, folder)
    same(rows(store), before)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"workers": -1}, "--workers is -1"),
        ({"adapters": ["gone"]}, "does not exist"),
        ({"adapters": ["a=x", "a=y"]}, "two adapters are named 'a'"),
        ({"frozen": False}, "nothing to embed with"),
        ({"backbone": "tiny:clap"}, "Unknown"),
        ({"columns": {"item": "photo"}}, ""),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(tmp_path, options, what, index):
    folder = pictures.folder(tmp_path / "in", 2)
    if "columns" in options:
        (folder / "metadata.csv").write_text("file,text\nred/00000.png,a\n")
        what = "there is no column 'photo'"
    with pytest.raises(UserError, match=what):
        index(tmp_path / "store", folder, **options)
    assert Collections(str(tmp_path / "store")).names() == []


def test_the_command(tmp_path, model, capsys):
    from crossadapt.cli.main import main

    folder = pictures.folder(tmp_path / "in", 5)
    args = ["index", str(folder), "--collection", NAME, "--store", str(tmp_path / "store")]
    args += ["--backbone", model, "--device", "cpu", "--workers", "0"]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "5 items found: 5 embedded" in out
    assert f"collection {NAME}: 5 rows, views frozen" in out
    assert main([*args, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["already"], document["embedded"], document["rows"]) == (5, 0, 5)
    assert main(["index", str(tmp_path / "nowhere"), "--collection", NAME]) == 1
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.skipif(not os.environ.get("CROSSADAPT_SLOW"), reason="minutes; set CROSSADAPT_SLOW=1")
def test_resume_with_kills_at_random_times(tmp_path, model, index):
    """A few hundred pictures, killed by the clock rather than at chosen moments."""
    folder = pictures.folder(tmp_path / "in", 400)
    index(tmp_path / "whole", folder)
    root = Path(__file__).resolve().parents[2]
    args = [sys.executable, "-m", "crossadapt.cli.main", "index", str(folder)]
    args += ["--collection", NAME, "--store", str(tmp_path / "s"), "--backbone", model]
    chance = np.random.default_rng(0)
    for seconds in chance.uniform(2, 12, 5):
        process = subprocess.Popen(args, cwd=root, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
    index(tmp_path / "s", folder)
    same(rows(tmp_path / "s"), rows(tmp_path / "whole"))
