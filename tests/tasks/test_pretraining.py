import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crossadapt import backbones
from crossadapt.adapters.attach import attach
from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError
from crossadapt.methods.full import FullConfig
from crossadapt.tasks.pretraining import PretrainingConfig, PretrainingTask, relation_divergence
from crossadapt.training.config import Recipe
from crossadapt.training.loop import fit

ITEMS = 12


def manifest():
    """Twelve pictures of six concepts, two captions each; the first half counts double."""
    rows = [
        {"item": f"/p/{i}.png", "text": text, "group": f"c{i % 6}", "weight": 2.0 if i < 6 else 1.0}
        for i in range(ITEMS)
        for text in (f"name {i % 6}", f"word {i}")
    ]
    return Manifest.from_rows(rows)


def pixels(side):
    return np.random.default_rng(0).integers(0, 255, (ITEMS, 3, side, side), dtype=np.uint8)


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(0)
    save_file({"features": torch.randn(8, 5)}, tmp_path / "teacher.safetensors")
    (tmp_path / "teacher.json").write_text(json.dumps([f"/p/{i}.png" for i in range(8)]))
    return str(tmp_path)


@pytest.fixture
def backbone():
    return backbones.tiny("clip")


def make(backbone, **options):
    batch_size = options.pop("batch_size", 6)
    return PretrainingTask(
        backbone,
        manifest(),
        pixels(backbone.preprocess.size[0]),
        PretrainingConfig(**options),
        batch_size=batch_size,
    )


def test_an_epoch_visits_pictures_by_weight_and_is_a_function_of_its_number(backbone):
    task = make(backbone, weight_column="weight")
    assert task.steps_per_epoch() == 3
    rows = np.concatenate(list(task.batches(0, 0)))
    visits = np.bincount(task.train.item_index[rows], minlength=ITEMS)
    assert visits.tolist() == [2] * 6 + [1] * 6
    again = list(task.batches(0, 1))
    assert np.array_equal(np.concatenate(again), rows[6:])
    assert not np.array_equal(np.concatenate(list(task.batches(1, 0))), rows)


def test_the_first_caption_is_drawn_as_often_as_asked(backbone):
    always = make(backbone, first_caption=1.0)
    rows = np.concatenate(list(always.batches(0, 0)))
    assert all(always.train.texts[row].startswith("name") for row in rows)
    never = make(backbone, first_caption=0.0)
    drawn = np.concatenate([rows for epoch in range(20) for rows in never.batches(epoch, 0)])
    names = np.mean([never.train.texts[row].startswith("name") for row in drawn])
    assert 0.35 < names < 0.65


def test_fewer_tokens_reach_the_tower_and_the_hook_goes_away(backbone):
    attach(backbone, FullConfig(scope="all"))
    task = make(backbone, token_drop=0.5)
    lengths = []
    site = next(s for s in backbone.sites() if s.name == "vision.0.block")
    watch = backbone.model.get_submodule(site.path).register_forward_pre_hook(
        lambda _m, args, kwargs: lengths.append((args or tuple(kwargs.values()))[0].shape[1]),
        with_kwargs=True,
    )
    batch = task.collate(np.arange(6))
    task.encode(backbone, "image", batch.inputs["image"])
    backbone.encode_image(backbone.preprocess.normalise(batch.inputs["image"][0]))
    watch.remove()
    patches = lengths[1] - 1
    assert lengths[0] == 1 + round(patches / 2)


def test_the_loss_is_the_weighted_sum_of_its_parts_and_trains_the_head(backbone, teacher):
    attach(backbone, FullConfig(scope="all"))
    task = make(backbone, teacher=teacher, feature_weight=2.0, relation_weight=3.0)
    batch = task.collate(np.arange(0, 12, 2))
    features = {name: task.encode(backbone, name, batch.inputs[name]) for name in batch.inputs}
    loss, parts = task.loss(features, batch, backbone)
    expected = parts["contrast"] + 2 * parts["feature"] + 3 * parts["relation"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert set(task.parameters()) == {"head.weight", "head.bias"}
    assert all(p.grad.abs().sum() > 0 for p in task.parameters().values())


def test_training_lowers_the_loss(backbone, teacher, tmp_path):
    attach(backbone, FullConfig(scope="all"))
    task = make(backbone, teacher=teacher, augment=False, token_drop=0.0)
    recipe = Recipe(optimiser="adamw", lr=3e-3, batch_size=6, epochs=15, guard=0)
    fit(backbone, task, recipe, output=tmp_path / "run", quiet=True)
    lines = (tmp_path / "run/events.jsonl").read_text().splitlines()
    losses = [e["loss"] for e in map(json.loads, lines) if e["event"] == "step"]
    assert losses[-1] < 0.8 * losses[0]


def test_relation_divergence_is_zero_for_equal_geometry():
    x = torch.randn(6, 4)
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    assert relation_divergence(x @ turn, 3 * x, 0.1).item() == pytest.approx(0, abs=1e-5)
    assert relation_divergence(torch.randn(6, 4), x, 0.1).item() > 0.01


def test_bad_settings_say_what_to_do(backbone, teacher, tmp_path):
    with pytest.raises(UserError, match="no column 'wieght'"):
        make(backbone, weight_column="wieght")
    with pytest.raises(UserError, match="a batch needs 64"):
        make(backbone, batch_size=64)
    with pytest.raises(UserError, match="cannot be read"):
        make(backbone, teacher=str(tmp_path / "nowhere"))
    (tmp_path / "teacher.json").write_text(json.dumps([f"/q/{i}.png" for i in range(8)]))
    with pytest.raises(UserError, match="knows none"):
        make(backbone, teacher=teacher)
