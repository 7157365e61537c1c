"""Clips in a collection: their rows, their frames, and the moment a query meets."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.search import pictures

pytest.importorskip("av")

from tests.data.video_zoo import write_video

import crossadapt
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import save_backbone
from crossadapt.data import Ledger
from crossadapt.errors import UserError
from crossadapt.layers.frame_pooling import mean_pooled
from crossadapt.search.card import frames_column, vector_column
from crossadapt.search.clips import ClipRule, clip_rule, file_id, still
from crossadapt.search.collection import Collections
from crossadapt.search.embedder import Embedder
from crossadapt.search.indexing import IndexJob, run_index
from crossadapt.search.query import Query, Searcher
from crossadapt.search.show import show
from crossadapt.search.sources import scan
from crossadapt.search.transfer import export_parquet, import_parquet

NAME = "films"
SECONDS = 4
COLOURS = [(220, 30, 30), (30, 200, 40), (40, 60, 220), (230, 220, 40)]


def film(path: Path, colours: list[tuple[int, int, int]]) -> Path:
    """Ten frames a second, a second of each colour with a bar that moves."""
    frames = []
    for number in range(10 * len(colours)):
        frame = np.full((48, 64, 3), colours[number // 10], np.uint8)
        frame[10:20, number : number + 8] = 255
        frames.append(frame)
    return write_video(path, frames, options={"crf": "10", "g": "12"})


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_backbone(crossadapt.load("tiny:clip"), tmp_path_factory.mktemp("backbone")))


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory) -> Path:
    """An mv-adapter for four frames that changes what a frame is by what stands around it."""
    backbone = crossadapt.load(model)
    config = make_config("mv-adapter", {"d": 8, "frames": 4, "tied": 0, "scale": 3.0})
    attached = crossadapt.attach(backbone, config, seed=5)
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in attached.trained().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    folder = crossadapt.save_adapter(backbone, "default", tmp_path_factory.mktemp("a") / "mv")
    job = {"frames": 4, "sampling": "segments"}
    (folder / "run.json").write_text(json.dumps({"job": job}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three films, one of them too short for four frames, one broken, and two pictures."""
    made = pictures.folder(tmp_path_factory.mktemp("in"), 2)
    film(made / "forth.mp4", COLOURS)
    film(made / "back.mp4", COLOURS[::-1])
    write_video(made / "short.mp4", 2)
    (made / "forth.txt").write_text("red, green, blue, yellow")
    (made / "broken.mp4").write_bytes((made / "forth.mp4").read_bytes()[:700])
    return made


def index(model: str, folder: Path, store: Path, **options):
    values = {"backbone": model, "workers": 0, "quiet": True, "batch_size": 5, **options}
    return run_index(IndexJob([str(folder)], NAME, store=str(store), precision="fp32", **values))


@pytest.fixture(scope="module")
def store(model, adapter, folder, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("store")
    report = index(model, folder, place, adapters=[f"mv={adapter}"], workers=1)
    assert (report.found, report.embedded, report.failed) == (6, 5, 1)
    assert sum(report.left_out.values()) == 1
    return place


def rows(store: Path) -> dict[str, dict]:
    collection = Collections(str(store)).open(NAME)
    found = [r for b in collection.scan(collection.card.schema.names) for r in b.to_pylist()]
    return {Path(row["item"]).name: row for row in found}


def test_a_clip_is_one_row_with_its_frames_inside(store, model, adapter) -> None:
    found = rows(store)
    assert sorted(found) == ["00000.png", "00001.png", "back.mp4", "forth.mp4", "short.mp4"]
    row = found["forth.mp4"]
    assert (row["kind"], row["width"], row["height"]) == ("video", 64, 48)
    assert row["duration"] == pytest.approx(SECONDS)
    assert row["times"] == pytest.approx([0.5, 1.5, 2.5, 3.5])
    assert row["texts"] == ["red, green, blue, yellow"]
    assert len(row["stills"]) == 4
    for content, colour in zip(row["stills"], COLOURS, strict=True):
        image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.abs(image[30:, :, :].mean((0, 1)) - colour).max() < 25
    assert row["thumbnail"] in row["stills"]
    short = found["short.mp4"]
    assert len(short["times"]) == len(short["stills"]) == 2
    dim = len(row[vector_column("mv")])
    for view in ("frozen", "mv"):
        for clip in (row, short):
            frames = np.array(clip[frames_column(view)], np.float32).reshape(-1, dim)
            assert len(frames) == len(clip["times"])
            assert np.linalg.norm(frames, axis=1) == pytest.approx(1, abs=1e-4)
            mean = frames.mean(0) / np.linalg.norm(frames.mean(0))
            assert np.allclose(clip[vector_column(view)], mean, atol=1e-4)
    picture = found["00000.png"]
    assert picture["kind"] == "image"
    assert picture["times"] is picture["stills"] is picture[frames_column("mv")] is None


def test_vectors_are_those_of_video_retrieval(store, model, adapter, folder) -> None:
    """The same numbers as the task computes, whatever else was in the batch."""
    import torch

    from crossadapt.data.frame_choice import Sampling
    from crossadapt.data.frames import FrameReader
    from crossadapt.data.video import read_frames
    from crossadapt.tasks.clips import encode_clips

    backbone = crossadapt.load(model)
    crossadapt.load_adapter(backbone, adapter)
    reader = FrameReader(backbone.preprocess.pixels, Sampling("segments", 4), (3, 32, 32))
    assert reader.sampling.frames == 4
    shots = read_frames(folder / "forth.mp4", Sampling("segments", 4))
    pixels = np.stack([backbone.preprocess.pixels(shot.image).numpy() for shot in shots])

    class One:
        frames = 4

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return pixels, np.ones(4, bool)

    from crossadapt.backbones.precision import choose_precision

    features = encode_clips(backbone, One(), precision=choose_precision("fp32", "cpu"))
    wanted = mean_pooled(features.frames, features.mask)[0]
    found = torch.tensor(rows(store)["forth.mp4"][vector_column("mv")])
    assert torch.allclose(found, wanted, atol=1e-4)


def test_order_reaches_the_collection_only_through_a_method_that_sees_it(store) -> None:
    found = rows(store)

    def frame_of(row: dict, place: int, view: str) -> np.ndarray:
        return np.array(row[frames_column(view)], np.float32).reshape(len(row["times"]), -1)[place]

    # The same colour in another place: the pictures differ by the bar alone.
    forth, back = found["forth.mp4"], found["back.mp4"]
    likeness = {
        view: float(frame_of(forth, 0, view) @ frame_of(back, 3, view)) for view in ("frozen", "mv")
    }
    assert likeness["mv"] < likeness["frozen"]


def searcher(store: Path, model: str, adapter: Path) -> Searcher:
    embedder = Embedder.open(model, {"mv": adapter}, device="cpu", precision="fp32")
    return Searcher(Collections(str(store)).open(NAME), embedder, calibrated=False)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_hit_says_where_in_the_clip_it_was_found(store, model, adapter, folder, strength):
    asked = searcher(store, model, adapter)
    wanted = rows(store)["forth.mp4"]
    for place in range(4):
        query = Query(image=wanted["stills"][place], view="frozen", k=5)
        hit = next(h for h in asked.search(query).hits if h.item.endswith("forth.mp4"))
        assert (hit.frame, hit.start) == (place, pytest.approx(place + 0.5))
        assert still(asked.collection, hit.id, place) == wanted["stills"][place]
    # By the definition, in any view and at any strength.
    query = Query(text="a green picture", view="mv", strength=strength, k=5, compare=True)
    result = asked.search(query)
    for hit in [*result.hits, *(result.frozen_hits or [])]:
        assert (hit.start is None) == (hit.kind == "image")
    text = {v: asked.embedder.texts(["a green picture"], v)[0] for v in ("frozen", "mv")}

    def mixed(frozen: np.ndarray, adapted: np.ndarray) -> np.ndarray:
        both = (1 - strength) * frozen + strength * adapted
        return both / np.linalg.norm(both, axis=-1, keepdims=True)

    dim = asked.collection.card.dim
    frames = {
        v: np.array(wanted[frames_column(v)], np.float32).reshape(-1, dim) for v in ("frozen", "mv")
    }
    best = int(np.argmax(mixed(**named(frames)) @ mixed(**named(text))))
    hit = next(h for h in result.hits if h.item.endswith("forth.mp4"))
    assert (hit.frame, hit.start) == (best, wanted["times"][best])


def named(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"frozen": parts["frozen"], "adapted": parts["mv"]}


def test_the_terminal_shows_the_second(store, model, adapter, capsys) -> None:
    asked = searcher(store, model, adapter)
    query = Query(text="red", k=5, filter='kind = "video"')
    result = asked.search(query)
    assert len(result.hits) == 3
    show(result, asked.collection, query, "blocks")
    said = capsys.readouterr().out
    assert ["rank", "cosine", "calibrated", "at", "item", "caption"] in map(
        str.split, said.split("\n")
    )
    for hit in result.hits:
        assert f"{hit.start:.1f} s" in said


def test_again_is_nothing_and_a_new_view_fills_its_frames(model, adapter, folder, tmp_path):
    store = tmp_path / "store"
    index(model, folder, store, frames=3)
    before = rows(store)
    report = index(model, folder, store)
    assert (report.already, report.embedded, report.updated) == (5, 0, 0)
    report = index(model, folder, store, adapters=[f"mv={adapter}"])
    assert report.embedded == 5
    after = rows(store)
    for name, row in after.items():
        assert {k: v for k, v in row.items() if k in before[name]} == before[name]
        assert (row[frames_column("mv")] is None) == (row["kind"] == "image")
    with pytest.raises(UserError, match="frames is 5, but the clips of collection") as caught:
        index(model, folder, store, frames=5)
    assert "--frames" in caught.value.fix
    # A collection of pictures learns about clips when the first one comes.
    home = Collections(str(tmp_path / "plain"))
    plain = pictures.folder(tmp_path / "plain-in", 2)
    index(model, plain, tmp_path / "plain")
    assert not home.open(NAME).card.clips
    assert frames_column("frozen") not in home.open(NAME).card.schema.names
    film(plain / "late.mp4", COLOURS)
    index(model, plain, tmp_path / "plain", frames=2, sampling="head")
    assert home.open(NAME).card.clips == {"frames": 2, "sampling": "head"}
    assert rows(tmp_path / "plain")["late.mp4"]["times"] == pytest.approx([0.0, 1.0])


def test_a_part_of_a_file(model, folder, tmp_path) -> None:
    lines = [
        {"item": str(folder / "forth.mp4"), "text": "green", "start": 1.0, "end": 2.0},
        {"item": str(folder / "back.mp4"), "text": "green to the end", "start": 2.0},
    ]
    table = tmp_path / "parts.jsonl"
    table.write_text("\n".join(map(json.dumps, lines)))
    index(model, table, tmp_path / "s", frames=2)
    found = rows(tmp_path / "s")
    assert found["forth.mp4"]["times"] == pytest.approx([1.2, 1.7], abs=0.06)
    assert found["back.mp4"]["times"] == pytest.approx([2.5, 3.5])
    table.write_text(json.dumps(lines[0] | {"start": "soon"}))
    with pytest.raises(UserError, match=r"start 'soon' and end 2\.0 are not seconds"):
        scan([str(table)], ledger=Ledger())


def test_frames_survive_export_and_import(store, tmp_path) -> None:
    home = Collections(str(store))
    export_parquet(home.open(NAME), tmp_path / "films.parquet")
    other = Collections(str(tmp_path / "other"))
    assert import_parquet(other, tmp_path / "films.parquet", NAME) == 5
    assert rows(tmp_path / "other") == rows(store)


def test_the_rule_comes_from_the_collection_the_user_or_the_adapter(adapter, tmp_path) -> None:
    assert clip_rule(None, [], None, None) == ClipRule(12, "segments")
    assert clip_rule(None, [adapter], None, None) == ClipRule(4, "segments")
    assert clip_rule(None, [adapter, tmp_path], 7, "1fps") == ClipRule(7, "1fps")
    with pytest.raises(UserError, match="no frame sampling"):
        clip_rule(None, [], None, "first")
    with pytest.raises(UserError, match="0 frames"):
        clip_rule(None, [], 0, None)


def test_more_frames_than_the_adapter_takes_are_refused(model, adapter, folder, tmp_path) -> None:
    with pytest.raises(UserError, match="clips of 6 frames for an mv-adapter made for 4"):
        index(model, folder, tmp_path / "s", adapters=[f"mv={adapter}"], frames=6)


def test_ids_are_those_of_the_content(folder, tmp_path) -> None:
    from crossadapt.search.thumbnails import content_id

    path = folder / "forth.mp4"
    assert file_id(path) == (content_id(path.read_bytes()), path.stat().st_size)
    entries = scan([str(folder)], ledger=Ledger())
    assert [e.kind for e in entries].count("video") == 4


def test_a_clip_is_judged_by_the_frame_that_is_shown(folder, tmp_path) -> None:
    """Of a re-ranked clip, the match logit is that of its best frame, read from the original."""
    import shutil

    from crossadapt.backbones.blip import MATCH
    from crossadapt.data.video import read_frames

    films, store = tmp_path / "films", tmp_path / "store"
    shutil.copytree(folder, films)
    source = str(save_backbone(crossadapt.load("tiny:blip"), tmp_path / "blip", dtype="float32"))
    index(source, films, store, frames=4)
    collection = Collections(str(store)).open(NAME)
    searcher = Searcher(collection, Embedder.open(source, device="cpu", precision="fp32"))
    query = Query(text="a red bar", k=9, rerank=9)
    found = searcher.search(query)
    assert not found.notes
    assert [hit.kind for hit in found.hits].count("video") == 3
    backbone = searcher.embedder.backbone
    tokens = backbone.tokenize([query.text])
    for hit in found.hits:
        if hit.kind == "video":
            every = list(read_frames(hit.item, lambda times, _: np.arange(len(times))))
            [shown] = [shot for shot in every if shot[0] == pytest.approx(hit.start, abs=1e-4)]
            image = shown[1]
        else:
            image = Image.open(hit.item).convert("RGB")
        pixels = backbone.preprocess.normalise(backbone.preprocess.pixels(image)[None])
        seen = backbone.encode_image_tokens(pixels)
        wanted = float(backbone.match(tokens.ids, tokens.mask, seen)[0, MATCH])
        assert hit.match == pytest.approx(wanted, abs=1e-4)
    (films / "back.mp4").write_bytes((films / "forth.mp4").read_bytes())
    left = searcher.search(query)
    assert "1 of 5 hits could not be judged" in left.notes[0]
    assert (Path(left.hits[-1].item).name, left.hits[-1].match) == ("back.mp4", None)
