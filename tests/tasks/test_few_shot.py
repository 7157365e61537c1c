"""Few-shot classification: draws, metrics, search, and whole runs on small folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from crossadapt.adapters.classifier import Support
from crossadapt.backbones import tiny
from crossadapt.cli.main import main
from crossadapt.data import Ledger
from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError
from crossadapt.evaluation.classification import (
    ClassificationResult,
    classify,
    harmonic_mean,
    join,
    paired_accuracy,
)
from crossadapt.layers.class_cache import ClassCache
from crossadapt.tasks.class_features import class_texts
from crossadapt.tasks.classes import base_and_novel, draw, read_classes
from crossadapt.tasks.few_shot import FewShotConfig, LabelledFeatures, search_sharpness
from crossadapt.training.config import make_recipe
from crossadapt.training.few_shot import run_few_shot
from crossadapt.training.few_shot_data import open_few_shot, read_few_shot
from crossadapt.training.job import TrainJob

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes by colour: six to learn from, three to choose by, four to measure on."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.array(colour) + rng.integers(-25, 25, (32, 32, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(root / split / name / f"{number}.png")
    return root


def job(folder: Path, output: Path, method: str, **changes) -> TrainJob:
    settings = {"backbone": "tiny:clip", "shots": 2, "quiet": True, "epochs": 2}
    # Features of a random model hardly differ between pictures, so the search has to reach far.
    settings["task_options"] = {"search_beta": 1e4, "search_alpha": 1e4}
    return TrainJob(data=str(folder), output=output, method=method, **settings | changes)


def test_draws() -> None:
    labels = np.array([0] * 9 + [1] * 3 + [2])
    few, more = draw(labels, range(2), 2, seed=1), draw(labels, range(2), 3, seed=1)
    assert labels[few].tolist() == [0, 0, 1, 1]
    assert len(set(more)) == 6
    # Fewer shots are the first of more, so that curves over shots are smooth.
    assert few.tolist() == [*more[:2], *more[3:5]]
    assert few.tolist() == draw(labels, range(2), 2, seed=1).tolist()
    assert any(draw(labels, range(2), 2, seed=s).tolist() != few.tolist() for s in range(2, 5))
    repeated = draw(labels, range(3), 4, seed=0)
    assert labels[repeated].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert set(repeated[8:]) == {12}
    with pytest.raises(UserError, match="class number 3"):
        draw(labels, range(4), 1, seed=0)


def test_base_and_novel_are_the_halves() -> None:
    assert [list(part) for part in base_and_novel(5)] == [[0, 1, 2], [3, 4]]


def test_classes_of_a_manifest() -> None:
    rows = [
        {"item": f"openmoji:{i}", "text": "x", "colour": ("red", "blue")[i % 2]} for i in range(4)
    ]
    found = read_classes(Manifest.from_rows(rows), "colour")
    assert found.names == ("blue", "red")
    assert found.of(["openmoji:0", "openmoji:1"]).tolist() == [1, 0]
    with pytest.raises(UserError, match="did you mean 'colour'"):
        read_classes(Manifest.from_rows(rows), "color")
    rows[0]["colour"] = None
    with pytest.raises(UserError, match="no class"):
        read_classes(Manifest.from_rows(rows), "colour")


def test_accuracy_by_hand() -> None:
    logits = np.array([[2.0, 1, 0], [0, 1, 0], [0, 0, 1], [5, 0, 1]])
    before = classify(logits, [0, 1, 1, 2], "abc", ["g", "g", "h", "i"])
    assert before.metric("accuracy") == 50
    assert before.metric("class_accuracy") == pytest.approx((100 + 50 + 0) / 3)
    again = ClassificationResult.from_dict(json.loads(json.dumps(before.to_dict(answers=True))))
    assert again.to_dict() == before.to_dict()
    interval = before.interval()
    assert interval.low < 50 < interval.high
    assert interval.count == 3
    after = classify(np.eye(3)[[0, 1, 1, 2]], [0, 1, 1, 2], "abc", ["g", "g", "h", "i"])
    test = paired_accuracy(before, after)
    assert (test.before, test.after, test.difference) == (50, 100, 50)
    assert test.low <= 50 <= test.high
    with pytest.raises(UserError, match="same items"):
        paired_accuracy(before, classify(np.eye(3), [0, 1, 2], "abc", "ghi"))
    with pytest.raises(UserError, match="not a number"):
        classify(np.full((1, 2), np.nan), [0], "ab", ["g"])
    with pytest.raises(UserError, match="do not fit"):
        classify(np.zeros((1, 2)), [0, 1], "ab", ["g", "h"])


def test_harmonic_mean_of_base_and_novel() -> None:
    assert harmonic_mean(80, 60) == pytest.approx(2 * 80 * 60 / 140)
    assert harmonic_mean(0, 0) == 0
    base = classify(np.eye(2), [0, 1], "ab", ["x", "y"], "base-to-novel")
    novel = classify(np.eye(2), [0, 0], "cd", ["z", "w"], "base-to-novel")
    both = join(base, novel)
    assert {m: both.metric(m) for m in both.metrics} == {
        "harmonic_mean": pytest.approx(200 / 3), "base": 100, "novel": 50}  # fmt: skip
    assert both.correct.mean() == 75
    assert ClassificationResult.from_dict(both.to_dict(answers=True)).metric("novel") == 50


@pytest.mark.parametrize("value", [0.0, 33.3, 100.0])
def test_a_harmonic_mean_of_equals_and_with_nothing(value: float) -> None:
    assert harmonic_mean(0, value) == harmonic_mean(value, 0) == 0
    assert harmonic_mean(value, value) == pytest.approx(value)


AVERAGES = [
    # base, novel, H over eleven sets as MaPLe's authors print them
    (69.34, 74.22, 71.70), (82.69, 63.22, 71.66), (80.47, 71.69, 75.83), (82.28, 75.14, 78.55),
    (80.24, 73.43, 76.68), (81.72, 73.81, 77.56), (82.15, 74.07, 77.90),
]  # fmt: skip
MAPLE = {
    # base and novel of MaPLe, ten sets
    "imagenet": (76.66, 70.54), "caltech101": (97.74, 94.36), "oxford_pets": (95.43, 97.76),
    "stanford_cars": (72.94, 74.00), "oxford_flowers": (95.92, 72.46), "food101": (90.71, 92.05),
    "fgvc_aircraft": (37.44, 35.61), "sun397": (80.82, 78.70), "dtd": (80.36, 59.18),
    "ucf101": (83.00, 78.66),
}  # fmt: skip


@pytest.mark.parametrize(("base", "novel", "published"), AVERAGES)
def test_the_average_row_is_the_harmonic_mean_of_the_averages(base, novel, published) -> None:
    assert harmonic_mean(base, novel) == pytest.approx(published, abs=0.006)


def test_and_not_the_average_of_the_harmonic_means() -> None:
    base, novel = (float(np.mean(part)) for part in zip(*MAPLE.values(), strict=True))
    assert (round(base, 2), round(novel, 2)) == (81.10, 75.33)
    assert harmonic_mean(base, novel) == pytest.approx(78.11, abs=0.005)
    apart = np.mean([harmonic_mean(*row) for row in MAPLE.values()])
    assert apart == pytest.approx(77.87, abs=0.005)


def test_five_classes_split_into_three_and_two_numbered_from_zero(tmp_path: Path) -> None:
    colours = {**COLOURS, "brown": (90, 60, 30), "white": (255, 255, 255)}
    for split in ("train", "val", "test"):
        for name, colour in colours.items():
            (tmp_path / "d" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), colour).save(tmp_path / "d" / split / name / "0.png")
    asked = job(tmp_path / "d", tmp_path / "x", "tip-adapter", protocol="base-to-novel", shots=1,
                workers=0, cache=tmp_path / "cache")  # fmt: skip
    ledger = Ledger()
    manifest = read_few_shot(asked, ledger)
    classes = read_classes(manifest)
    assert classes.names == ("blue", "brown", "green", "red", "white")
    found = open_few_shot(asked, FewShotConfig(), classes, manifest, tiny("clip"), ledger)
    assert found.test.names == ("blue", "brown", "green")
    assert found.novel.names == ("red", "white")
    assert sorted(found.test.labels.tolist()) == [0, 1, 2]
    assert sorted(found.novel.labels.tolist()) == [0, 1]
    assert not set(found.test.items) & set(found.novel.items)
    # What is learnt from knows nothing of the other half.
    assert set(found.pool.names) == set(found.test.names)
    for part in (found.test, found.novel):
        names = [Path(item).parent.name for item in part.items]
        assert [part.names[label] for label in part.labels] == names


def test_templates_are_averaged_on_the_sphere() -> None:
    backbone = tiny("clip")
    one, two, both = (
        class_texts(backbone, ["red_door", "cat"], templates)
        for templates in (["a {}."], ["the {}!"], ["a {}.", "the {}!"])
    )
    torch.testing.assert_close(both, F.normalize(one + two, dim=-1))
    torch.testing.assert_close(one, class_texts(backbone, ["red door", "cat"], ["a {}."]))
    with pytest.raises(UserError, match="no place for the class"):
        class_texts(backbone, ["cat"], ["a picture"])


def test_search_keeps_the_first_best_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    unit = lambda *shape: F.normalize(torch.randn(*shape, generator=generator), dim=-1)  # noqa: E731
    cache = ClassCache(tuple("abc"), 2, 8, 1.0, 1.0, trained_keys=False)
    cache.build(Support(unit(6, 8), unit(3, 8)))
    held_out = LabelledFeatures(unit(12, 8), torch.arange(12) % 3)
    alpha, beta, accuracy = search_sharpness(cache, held_out, (7.0, 3.0))
    best = (-1.0, 0.0, 0.0)
    for i in range(200):
        for j in range(20):
            b, a = 0.1 + i * 6.9 / 200, 0.1 + j * 2.9 / 20
            part = torch.exp(-b * (1 - held_out.images @ cache.keys.T)).view(12, 3, 2).sum(2)
            logits = 100 * held_out.images @ cache.text.T + a * part
            found = 100 * float((logits.argmax(1) == held_out.labels).double().mean())
            best = max(best, (found, -i, -j))
    assert accuracy == pytest.approx(best[0])
    assert beta == pytest.approx(0.1 - best[1] * 6.9 / 200)
    assert alpha == pytest.approx(0.1 - best[2] * 2.9 / 20)
    assert (cache.alpha, cache.beta) == (1.0, 1.0)


def test_published_numbers_of_training() -> None:
    recipe = make_recipe("few-shot")
    assert (recipe.optimiser, recipe.lr, recipe.eps) == ("adamw", 1e-3, 1e-4)
    assert (recipe.batch_size, recipe.epochs, recipe.warmup) == (256, 20, 0.0)
    assert TrainJob(data="x", method="xmadapter").recipe() == recipe
    assert TrainJob(data="x", method="coop").recipe() != recipe
    for options in ({"shots": 0}, {"view": "crops"}, {"search_beta": 0.1}, {"val_shots": 0}):
        with pytest.raises(UserError):
            FewShotConfig(**options)


@pytest.mark.parametrize("method", ["tip-adapter", "tip-adapter-f", "xmadapter", "coop"])
def test_a_run_of_each_kind(method: str, folder: Path, tmp_path: Path) -> None:
    result = run_few_shot(job(folder, tmp_path / "a", method))
    assert result.before.classes == ("blue", "green", "red")
    assert len(result.after.labels) == 12
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["few_shot"]["shots"] == 2
    assert record["protocol"] == "few-shot"
    assert "zero-shot" in (tmp_path / "a" / "README.md").read_text()
    if method != "coop":
        assert record["few_shot"]["searched"]
        # Colours are what the pictures differ in: the cache finds them, a random text does not.
        assert result.after.metric("accuracy") > result.before.metric("accuracy")
    with (
        pytest.raises(UserError, match="already holds a run")
        if method not in ("tip-adapter",)
        else pytest.raises(UserError, match="is a file")
    ):
        if method == "tip-adapter":
            (tmp_path / "f").write_text("")
        run_few_shot(job(folder, tmp_path / ("f" if method == "tip-adapter" else "a"), method))


def test_base_to_novel_and_official(folder: Path, tmp_path: Path) -> None:
    found = run_few_shot(job(folder, tmp_path / "b", "tip-adapter", protocol="base-to-novel"))
    assert found.after.metrics == ("harmonic_mean", "base", "novel")
    assert found.after.parts["novel"].classes == ("red",)
    # A cache knows nothing of novel classes.
    assert found.after.metric("novel") == found.before.metric("novel")
    official = run_few_shot(job(folder, tmp_path / "o", "tip-adapter-f", protocol="tip-official"))
    assert official.after.protocol == "tip-official"
    with pytest.raises(UserError, match="no protocol 'coco-5k'"):
        run_few_shot(job(folder, tmp_path / "c", "tip-adapter", protocol="coco-5k"))


def test_xmadapter_takes_the_texts_of_a_coop_adapter(folder: Path, tmp_path: Path) -> None:
    run_few_shot(job(folder, tmp_path / "coop", "coop", epochs=1))
    options = {"coop": str(tmp_path / "coop")}
    with_coop = run_few_shot(job(folder, tmp_path / "x", "xmadapter", method_options=options))
    assert with_coop.record["identity"]["config"]["coop"] == options["coop"]


def test_commands_and_domain_shift(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tip"
    args = ["--task", "few-shot", "--shots", "2", "--backbone", "tiny:clip"]
    args += ["--method", "tip-adapter", "--output", str(output)]
    assert main(["train", "--data", str(folder), *args]) == 0
    assert "alpha" in capsys.readouterr().out
    assert main(["evaluate", "--data", str(folder), "--adapter", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["protocol"] == "few-shot"
    assert document["paired"]["after"] == document["adapted"]["accuracy"]
    # Other data with some of the classes: the columns are cut, the adapter is as it was.
    for name in ("red", "blue"):
        (tmp_path / "shift" / "test" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.new("RGB", (32, 32), COLOURS[name])
            image.save(tmp_path / "shift" / "test" / name / f"{number}.png")
    shift = ["evaluate", "--data", str(tmp_path / "shift"), "--adapter", str(output), "--json"]
    assert main(shift) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["protocol"], document["adapted"]["classes"]) == ("domain-shift", 2)
    assert document["adapted"]["items"] == 4
    zero = ["evaluate", "--data", str(folder), "--task", "few-shot", "--backbone", "tiny:clip"]
    assert main(zero) == 0
    assert "zero-shot" in capsys.readouterr().out


def test_comparison_over_shots(folder: Path, tmp_path: Path) -> None:
    args = ["compare", "--data", str(folder), "--backbone", "tiny:clip", "--seeds", "0", "1"]
    args += ["--methods", "tip-adapter:shots=1", "tip-adapter:shots=2"]
    assert main([*args, "--output", str(tmp_path / "c"), "--json"]) == 0
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [row["method"] for row in found["rows"]] == [
        "zero-shot", "tip-adapter:shots=1", "tip-adapter:shots=2"]  # fmt: skip
    assert found["headline"] == "accuracy"
    assert len(found["rows"][1]["metrics"]["accuracy"]["values"]) == 2
