"""The classification task: probe, tokens, heads, whole runs, and what users can get wrong."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from tests.data.zoo import picture
from torch import nn

from crossadapt import backbones
from crossadapt.adapters.attach import attach, frozen
from crossadapt.adapters.folder import load_adapter
from crossadapt.backbones.precision import choose_precision
from crossadapt.cli.main import main
from crossadapt.data import Ledger, Manifest, read_manifest
from crossadapt.data.signals import Signals
from crossadapt.errors import UserError
from crossadapt.layers.classifier_head import ClassifierHead
from crossadapt.methods.adaptformer import AdaptFormerConfig
from crossadapt.methods.cm3t import CM3TConfig
from crossadapt.tasks.base import TaskSetup
from crossadapt.tasks.classifier import load_classifier
from crossadapt.tasks.linear_probe import fit_probe
from crossadapt.tasks.modality_tokens import SignalTokens, padded, resampled, text_tokens
from crossadapt.tasks.multimodal import MultimodalTask, make_task
from crossadapt.tasks.multimodal_options import MultimodalConfig, with_modalities
from crossadapt.training.compare import compare
from crossadapt.training.job import TrainJob
from crossadapt.training.measure import run_evaluation
from crossadapt.training.run import run_training

SMALL = {"r": 4, "prefix": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty pictures; only the signals know the class. One of them has broken signals."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    rows = []
    for n in range(40):
        picture(n).save(folder / f"{n}.png")
        series = random.normal(size=(5, 2)) + (3 if n % 2 else -3)
        rows.append(
            {
                "file_name": f"{n}.png",
                "text": f"picture {n}",
                "split": ("train", "train", "val", "test")[n // 2 % 4],
                "label": ("low", "high")[n % 2],
                "signals": "gone.npy" if n == 1 else series.tolist(),
            }
        )
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text(lines + "\n")
    return folder


def setup(backbone, folder, **changes) -> TaskSetup:
    manifest = read_manifest(folder)
    size = backbone.preprocess.size
    pixels = np.random.default_rng(1).integers(0, 256, (30, 3, *size), dtype=np.uint8)
    settings = {
        "backbone": backbone,
        "train": manifest.select("train"),
        "pixels": pixels[:20],
        "validation": manifest.select("val"),
        "validation_pixels": pixels[20:],
        "batch_size": 8,
        "captions": "one",
        "objective": "info-nce",
        "seed": 0,
        "precision": choose_precision("fp32", "cpu"),
        "ledger": Ledger(),
    }
    return TaskSetup(**{**settings, **changes})


def task_of(folder, options=None, **changes) -> tuple:
    backbone = backbones.load("tiny:clip")
    given = setup(backbone, folder, **changes)
    config = with_modalities(CM3TConfig(**SMALL), backbone, given.train, options or {})
    attach(backbone, config)
    return backbone, make_task(given, options or {})


# -- pieces -----------------------------------------------------------------------------------


def test_the_probe_is_at_the_optimum_of_its_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64) * 7 + 3
    y = (x[:, 0] > 3).long() + (x[:, 1] > 3).long()
    probe = fit_probe(x, y, 3)
    assert float((probe(x).argmax(1) == y).double().mean()) > 0.7
    scaled = (x - probe.mean) / probe.std
    torch.testing.assert_close(scaled.std(0, unbiased=False), torch.ones(5, dtype=torch.float64))
    weight = probe.weight.clone().requires_grad_()
    loss = nn.functional.cross_entropy(scaled @ weight + probe.bias, y)
    (loss + probe.penalty * weight.square().sum() / 2).backward()
    assert float(weight.grad.abs().max()) < 1e-3
    folded, bias = probe.folded()
    torch.testing.assert_close(x @ folded + bias, probe(x))


def test_a_constant_feature_does_no_harm() -> None:
    x = torch.tensor([[0.0, 5.0], [1.0, 5.0]] * 10)
    y = torch.tensor([0, 1] * 10)
    probe = fit_probe(x, y, 2, (x, y))
    assert torch.equal(probe(x).argmax(1), y)


def test_signal_tokens() -> None:
    series = [np.array([[1.0, 5.0], [3.0, np.nan]], np.float32), None]
    tokens = SignalTokens.fit(Signals(series, 2), limit=4)
    assert tokens.size == 2 * 2 + 8
    found = tokens(series[0])
    # Mean 2 and deviation 1 of the first channel; the second never changes.
    torch.testing.assert_close(found[:, :4], torch.tensor([[-1.0, 0, 1, 1], [1, 0, 1, 0]]))
    torch.testing.assert_close(found[0, 4:], torch.tensor([0.0] * 4 + [1.0] * 4))
    ends = torch.tensor([0.0] * 4 + [-1.0, 1, -1, 1])
    torch.testing.assert_close(found[1, 4:], ends, atol=1e-6, rtol=0)
    long = np.repeat(np.array([[1.0, 5.0], [3.0, 5.0]], np.float32), 8, axis=0)
    torch.testing.assert_close(tokens(long)[:, 0], torch.tensor([-1.0, -1, 1, 1]))
    full, mask = padded([found, None], tokens.size)
    assert full.shape == (2, 2, 12)
    assert mask.tolist() == [[True, True], [False, False]]
    line = resampled(torch.tensor([[0.0], [1.0]]), 3, 1)
    torch.testing.assert_close(line, torch.tensor([0.0, 0.5, 1.0]))
    assert not resampled(None, 3, 1).any()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_text_tokens_are_those_of_the_frozen_tower(family) -> None:
    backbone = backbones.tiny(family)
    tokens = backbone.tokenize(["a red door", "two green birds on a boat"])
    found = text_tokens(backbone, tokens.ids, tokens.mask)
    assert found.shape == (*tokens.ids.shape, backbone.width("text"))
    assert not found.requires_grad
    torch.testing.assert_close(found.mean(-1), torch.zeros(tokens.ids.shape), atol=1e-5, rtol=0)
    if family == "clip":
        output = backbone.model.text_model(input_ids=tokens.ids, output_hidden_states=True)
        last = output.hidden_states[-1]
        expected = nn.functional.layer_norm(last, last.shape[-1:])
        torch.testing.assert_close(found, expected)


def test_heads_pool_what_is_there() -> None:
    frames = torch.randn(2, 3, 8)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    other = frames.clone()
    other[0, 2] = 9.0
    for pooling in ("mean", "concat"):
        head = ClassifierHead(8, 3, 4, pooling)
        torch.testing.assert_close(head(frames, mask), head(other, mask))
        backwards = head(frames.flip(1)[1:], mask[1:])
        same = torch.allclose(backwards, head(frames, mask)[1:], atol=1e-5)
        assert same == (pooling == "mean")


# -- the task ---------------------------------------------------------------------------------


def test_modalities_come_from_the_data(photos) -> None:
    backbone = backbones.load("tiny:clip")
    train = read_manifest(photos).select("train")
    width = backbone.width("text")

    def filled(method=None, **options):
        found = with_modalities(method or CM3TConfig(), backbone, train, options)
        return found.sources() if hasattr(found, "sources") else found

    assert filled() == {"text": width, "signals": 12}
    assert filled(modalities=["signals"]) == {"signals": 12}
    assert filled(modalities=[]) == {}
    assert filled(CM3TConfig(modalities=("text=3",))) == {"text": 3}
    assert filled(AdaptFormerConfig()) == AdaptFormerConfig()
    with pytest.raises(UserError, match="no further modality"):
        filled(AdaptFormerConfig(), modalities=["text"])
    plain = Manifest(train.table.drop_columns(["signals"]))
    assert with_modalities(CM3TConfig(), backbone, plain, {}).sources() == {"text": width}
    with pytest.raises(UserError, match="no signals"):
        with_modalities(CM3TConfig(), backbone, plain, {"modalities": ["signals"]})


def test_it_starts_as_the_linear_probe_on_the_frames(photos) -> None:
    backbone, task = task_of(photos, {"modalities": []})
    trained = task.measure(backbone, task.validation)
    with frozen(backbone):
        probe = task.measure(backbone, task.validation)
        assert task.validate(backbone)["accuracy"] == probe.accuracy
    assert np.array_equal(trained.predicted, probe.predicted)


def test_the_probe_with_signals_solves_what_frames_cannot(photos) -> None:
    backbone, task = task_of(photos)
    assert [entry.kind for entry in task.ledger] == ["unreadable signals"]
    with frozen(backbone):
        assert task.measure(backbone, task.validation, ("signals",)).accuracy == 100.0
        assert task.measure(backbone, task.validation, ()).accuracy < 90.0


def test_hidden_modalities_are_hidden_at_random(photos) -> None:
    backbone, task = task_of(photos, {"modality_drop": 0.5, "modalities": ["signals"]})
    rows = np.arange(20)
    torch.manual_seed(0)
    _, _, _, mask = task.collate(rows).inputs["clip"]
    shown = int(mask.any(1).sum())
    assert 4 <= shown <= 15
    torch.manual_seed(0)
    assert torch.equal(task.collate(rows).inputs["clip"][3], mask)
    held = task.validation.inputs(np.arange(10), ("signals",))
    assert bool(held[3].any(1).all())
    features = task.encode(backbone, "clip", task.collate(rows).inputs["clip"])
    assert features.shape == (20, 1, backbone.embedding_dim)


def test_rows_are_encoded_one_by_one(photos) -> None:
    backbone, task = task_of(photos)
    adapter = backbone.adapters["default"].eval()
    for p in adapter.trained().values():
        p.data.normal_(std=0.2)
    rows = np.array([0, 3, 5])
    with torch.no_grad():
        together = task.encode(backbone, "clip", task.collate(rows).inputs["clip"])
        for place, row in enumerate(rows):
            alone = task.encode(backbone, "clip", task.collate(np.array([row])).inputs["clip"])
            torch.testing.assert_close(alone[0], together[place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"start": "zero"}, "start"),
        ({"modality_drop": 1.0}, "modality_drop"),
        ({"signal_tokens": 0}, "signal_tokens"),
        ({"modalities": ["sound"]}, "no modality 'sound'"),
        ({"lable": "x"}, "no option 'lable'"),
        ({"label": "lable"}, "no column 'lable'"),
    ],
)
def test_wrong_options_are_named(photos, options, match) -> None:
    with pytest.raises(UserError, match=match):
        task_of(photos, options)


def test_wrong_labels_are_named(photos) -> None:
    rows = [{"item": f"openmoji:{n}", "text": f"t {n}", "label": "a"} for n in range(4)]
    backbone = backbones.load("tiny:clip")
    attach(backbone, CM3TConfig(**SMALL))
    with pytest.raises(UserError, match="one class"):
        MultimodalTask(setup(backbone, photos, train=Manifest.from_rows(rows)), MultimodalConfig())
    with pytest.raises(UserError, match="an empty class"):
        MultimodalTask(
            setup(
                backbone, photos, train=Manifest.from_rows([*rows[:3], {**rows[3], "label": " "}])
            ),
            MultimodalConfig(),
        )
    twice = [*rows, {**rows[0], "text": "other", "label": "b"}]
    with pytest.raises(UserError, match="'a' and 'b'"):
        MultimodalTask(setup(backbone, photos, train=Manifest.from_rows(twice)), MultimodalConfig())
    attach(backbone, CM3TConfig(**SMALL, modalities=("sound=4",)), name="other")
    with pytest.raises(UserError, match="cannot make tokens of 'sound'"):
        MultimodalTask(setup(backbone, photos), MultimodalConfig())


# -- whole runs -------------------------------------------------------------------------------


def job(photos, output, **changes) -> TrainJob:
    settings = {
        "backbone": "tiny:clip",
        "task": "multimodal",
        "method": "cm3t",
        "method_options": SMALL,
        "batch_size": 10,
        "epochs": 30,
        "lr": 1e-2,
        "evaluate_every": 10,
        "precision": "fp32",
        "quiet": True,
    }
    return TrainJob(str(photos), output=output, **{**settings, **changes})


def test_a_run_learns_from_the_signals_and_can_be_used(photos, tmp_path) -> None:
    result = run_training(job(photos, tmp_path))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["after"]["accuracy"] >= 90.0
    subsets = record["classification"]["subsets"]
    assert list(subsets) == ["vision", "vision+text", "vision+signals", "vision+text+signals"]
    assert subsets["vision+text+signals"]["trained"] == record["after"]["accuracy"]
    assert subsets["vision"]["trained"] < 90.0
    assert [entry.kind for entry in result.ledger] == ["unreadable signals"]
    assert "| vision+signals |" in (tmp_path / "README.md").read_text()
    assert record["identity"]["config"]["modalities"] == ["text=16", "signals=12"]
    answers = json.loads((tmp_path / "results.json").read_text())["after"]

    backbone = backbones.load("tiny:clip")
    load_adapter(backbone, tmp_path)
    classifier = load_classifier(backbone, tmp_path)
    split = result.held_out
    series = [np.array(json.loads(v)) for v in split.manifest.table["signals"].to_pylist()]
    found = classifier.probabilities(split.pixels, split.manifest.texts, series)
    assert found.argmax(1).tolist() == answers["details"]["predicted"]
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))
    without = classifier.probabilities(split.pixels, [None] * len(found))
    torch.testing.assert_close(without, classifier.probabilities(split.pixels))
    with pytest.raises(UserError, match="signals for"):
        classifier.probabilities(split.pixels, signals=series[:1])
    with pytest.raises(UserError, match="trained to classify"):
        run_evaluation(str(photos), adapter=tmp_path)
    with frozen(backbone), pytest.raises(UserError, match="no adapter is active"):
        load_classifier(backbone, tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        load_classifier(backbone, photos)


def test_any_method_can_classify_from_the_command_line(photos, tmp_path, capsys) -> None:
    options = (
        "--task multimodal --method projection --backbone tiny:clip --epochs 2 --batch-size 10"
    )
    args = ["train", "--data", str(photos), "--output", str(tmp_path), *options.split()]
    assert main([*args, "--precision", "fp32"]) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert list(record["classification"]["subsets"]) == ["vision"]
    assert record["recipe"]["guard"] == 0
    printed = capsys.readouterr().out
    assert "linear probe" in printed
    assert f"{record['after']['accuracy']:.1f}" in printed
    page = (tmp_path / "report.html").read_text()
    assert "macro-F1, trained" in page


def test_cm3t_classifies_on_blip(photos, tmp_path) -> None:
    """On the vision tower of a BLIP; its fusion tower takes no part."""
    options = (
        "--task multimodal --method cm3t --method.r 4 --method.prefix 4 --backbone tiny:blip "
        "--epochs 1 --batch-size 10 --precision fp32 --quiet"
    )
    assert main(["train", "--data", str(photos), "--output", str(tmp_path), *options.split()]) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    subsets = ["vision", "vision+text", "vision+signals", "vision+text+signals"]
    assert list(record["classification"]["subsets"]) == subsets
    assert record["identity"]["config"]["modalities"] == ["text=16", "signals=12"]
    backbone = backbones.load("tiny:blip")
    load_adapter(backbone, tmp_path)
    found = load_classifier(backbone, tmp_path).probabilities(
        np.zeros((2, 3, 32, 32), np.uint8), ["a door", None], [None, None]
    )
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    photos, tmp_path, monkeypatch
) -> None:
    short = {"epochs": 3, "evaluate_every": 1, "task_options": {"modality_drop": 0.3}}
    whole = run_training(job(photos, tmp_path / "a", **short))
    calls = []
    collate = MultimodalTask.collate

    def stopping(self, rows):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return collate(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(MultimodalTask, "collate", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_training(job(photos, tmp_path / "b", **short))
    assert len(calls) == 3 < whole.fit.total
    again = run_training(job(photos, tmp_path / "b", **short, resume=True))
    assert again.after.result.to_dict(answers=True) == whole.after.result.to_dict(answers=True)
    assert (tmp_path / "b" / "classifier.safetensors").read_bytes() == (
        tmp_path / "a" / "classifier.safetensors"
    ).read_bytes()


def test_what_only_retrieval_can_do_is_refused(photos, tmp_path) -> None:
    with pytest.raises(UserError, match="pooling is for video retrieval"):
        run_training(job(photos, tmp_path / "a", pooling="mean"))
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="measures retrieval"):
        compare(job(photos, tmp_path / "b"), ["cm3t"], [0], tmp_path / "c")
