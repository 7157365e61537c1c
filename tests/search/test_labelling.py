"""``crossadapt label``: from a few examples to a filter, without embedding anything again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.search.making import unit

import crossadapt
from crossadapt.adapters.classifier import Support
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import tiny
from crossadapt.cli.main import main
from crossadapt.errors import UserError
from crossadapt.search import embedder as embedding
from crossadapt.search.collection import Collections
from crossadapt.search.label_examples import read_examples
from crossadapt.search.labelling import LabelJob, label_collection

COLOURS = {"red": (200, 30, 30), "blue": (40, 60, 200)}


@pytest.fixture
def indexed(tmp_path: Path) -> tuple[Path, str]:
    """Twelve pictures in two colours, indexed by the command; their folder and the store."""
    photos, store = tmp_path / "photos", str(tmp_path / "store")
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(6):
            pixels = np.array(colour) + rng.integers(-20, 20, (32, 32, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(photos / f"{name}{number}.png")
    index(photos, store)
    return photos, store


def index(photos: Path, store: str) -> None:
    args = ["index", str(photos), "--collection", "c", "--backbone", "tiny:clip", "--workers", "0"]
    assert main([*args, "--store", store, "--quiet"]) == 0


def examples(photos: Path, *numbers: int) -> Path:
    path = photos.parent / "examples.csv"
    lines = [f"{photos / f'{name}{n}.png'},{name}" for name in COLOURS for n in numbers]
    path.write_text("\n".join(["item,label", *lines]) + "\n")
    return path


def labels(store: str, name: str = "colour") -> dict[str, tuple]:
    rows = [
        row
        for batch in Collections(store)
        .open("c")
        .scan(["item", f"attr_{name}", f"attr_{name}_score"])
        for row in batch.to_pylist()
    ]
    return {Path(r["item"]).stem: tuple(r.values())[1:] for r in rows}


def test_label_then_filter_in_search(
    indexed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, store = indexed

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a picture was embedded")

    monkeypatch.setattr(embedding.Embedder, "pictures", never)
    args = ["label", "c", "--name", "colour", "--examples", str(examples(photos, 0, 1))]
    capsys.readouterr()
    assert main([*args, "--store", store, "--no-text", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 12
    assert report["found"] == {"blue": 6, "red": 6}
    assert report["held_out"] == 100
    for stem, (label, score) in labels(store).items():
        assert stem.startswith(label)
        assert 0.5 <= score <= 1
    query = ["search", "c", "a picture", "--filter", 'colour = "red" and colour_score > 0.5']
    assert main([*query, "--k", "12", "--store", store, "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert sorted(Path(hit["item"]).stem for hit in hits) == [f"red{n}" for n in range(6)]


def test_the_names_count_too_and_a_label_can_be_withheld(indexed) -> None:
    photos, store = indexed
    job = LabelJob("c", "colour", examples(photos, 0), store=store, least=0.0)
    first = label_collection(job)
    assert first.held_out is None
    assert (first.alpha, first.beta) == (1.17, 1.0)
    again = LabelJob("c", "colour", examples(photos, 0), store=store, least=1.0, overwrite=True)
    assert label_collection(again).unsure > 0
    assert any(label is None for label, _ in labels(store).values())


def test_indexing_again_keeps_the_labels(indexed) -> None:
    photos, store = indexed
    label_collection(LabelJob("c", "colour", examples(photos, 0, 1), text=False, store=store))
    before = labels(store)
    Image.new("RGB", (32, 32), COLOURS["red"]).save(photos / "late.png")
    index(photos, store)
    after = labels(store)
    assert after.pop("late") == (None, None)
    assert after == before


def test_a_filter_labels_some_and_leaves_the_others(indexed) -> None:
    photos, store = indexed
    label_collection(LabelJob("c", "colour", examples(photos, 0, 1), text=False, store=store))
    some = LabelJob(
        "c", "colour", examples(photos, 0), text=False, store=store, overwrite=True,
        filter='item like "%red%"',
    )  # fmt: skip
    assert label_collection(some).rows == 6
    assert all(label for label, _ in labels(store).values())


def test_an_adapter_gives_labels_and_one_of_another_model_is_refused(
    indexed, tmp_path: Path
) -> None:
    _, store = indexed
    folders = {}
    for seed in (0, 1):
        backbone = tiny("clip", seed=seed)
        if seed == 0:
            backbone = crossadapt.load("tiny:clip")
        config = make_config("tip-adapter", {"classes": ["blue", "red"], "shots": 1})
        adapter = crossadapt.attach(backbone, config)
        rows = {
            Path(row["item"]).stem: row["vector_frozen"]
            for batch in Collections(store).open("c").scan(["item", "vector_frozen"])
            for row in batch.to_pylist()
        }
        keys = torch.tensor(np.array([rows["blue0"], rows["red0"]]))
        text = torch.tensor(unit(np.ones((2, backbone.embedding_dim))))
        adapter.companion.build(Support(keys, text))
        folders[seed] = crossadapt.save_adapter(backbone, "default", tmp_path / f"a{seed}")
    report = label_collection(LabelJob("c", "colour", adapter=folders[0], store=store))
    assert report.found == {"blue": 6, "red": 6}
    other = LabelJob("c", "other", adapter=folders[1], store=store)
    with pytest.raises(UserError, match="made for another model"):
        label_collection(other)
    assert "other" not in Collections(store).open("c").card.attributes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,label\n", "no example"),
        ("item,class\na.png,red\n", "without id"),
        ("item,label\na.png,\n", "without id"),
        ("item,label\na.png,red\na.png,blue\n", "is both"),
    ],
)
def test_broken_examples(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_examples(tmp_path / "e.csv")


def test_examples_as_json_lines(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"id": "1", "label": "red"}\n{"item": "b", "label": "x"}\n')
    assert read_examples(tmp_path / "e.jsonl") == [("1", "red"), ("b", "x")]
    (tmp_path / "e.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="not a JSON object"):
        read_examples(tmp_path / "e.jsonl")


def test_what_is_refused(indexed, tmp_path: Path) -> None:
    photos, store = indexed
    good = examples(photos, 0)
    lost = tmp_path / "lost.csv"
    lost.write_text(f"item,label\n{photos / 'red9.png'},red\n{photos / 'blue0.png'},blue\n")
    one = tmp_path / "one.csv"
    one.write_text(f"item,label\n{photos / 'red0.png'},red\n")
    cases = [
        (LabelJob("c", store=store), "from examples or from an adapter"),
        (LabelJob("c", examples=good, store=store, least=2), "least is 2"),
        (LabelJob("c", "group", examples=good, store=store), "column of every collection"),
        (LabelJob("c", examples=lost, store=store), "1 examples are not in the collection"),
        (LabelJob("c", examples=one, store=store), "name 1 class"),
        (LabelJob("c", examples=good, store=store, templates=("x",)), "has no {}"),
    ]
    for job, message in cases:
        with pytest.raises(UserError, match=message):
            label_collection(job)
    assert Collections(store).open("c").card.attributes == {}
    label_collection(LabelJob("c", examples=good, text=False, store=store))
    with pytest.raises(UserError, match="labels 'label' already"):
        label_collection(LabelJob("c", examples=good, text=False, store=store))
    with (
        Collections(store).open("c", write=True),
        pytest.raises(UserError, match="writ"),
    ):
        label_collection(LabelJob("c", examples=good, overwrite=True, store=store, wait=0.05))
