"""What every method must do, on every family and with towers of equal and unequal depth."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from tests.adapting import batch, features, hooks, loss, same, small, snapshot, train

from crossadapt.adapters.adapter import AttachedAdapter
from crossadapt.adapters.attach import activate, attach, detach, frozen, set_strength
from crossadapt.adapters.folder import load_adapter, save_adapter
from crossadapt.adapters.plan import Insertion, Override
from crossadapt.adapters.registry import get_method, make_config, method_names
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import pooled_token
from crossadapt.errors import UserError

# Methods that are built from labelled examples score classes, not pairs, and leave the features
# alone: test_behaviour_caches.py holds what they must do.
METHODS = [name for name in method_names() if not get_method(name).few_shot]
if importlib.util.find_spec("peft") is not None:
    METHODS += ["peft:lora", "peft:dora", "peft:ia3"]

# Options a tiny model needs: two shared channels, and a real bottleneck.
OPTIONS = {
    "adaptformer": {"r": 4, "dropout": 0.0},
    "apollo": {"heads": 2},
    "cm3t": {"r": 4, "prefix": 4, "dropout": 0.0},
    "coop": {"tokens": 4},
    "cross-modal-adapter": {"r": 4, "d_s": 6},
    "hada": {"transform": 16, "graph": 8, "heads": 2, "output": 16, "dropout": 0.0},
    "mv-adapter": {"d": 8, "frames": 2, "tied": 1, "shrink": 1},
    "partial": {"layers": 1, "heads": True},
    "uniadapter": {"r": 4},
}
SHAPES = {"equal": (2, 2), "more-text": (2, 3), "more-vision": (3, 2)}

# Which tower is deeper matters to methods that pair layers; the others run on one shape each.
BACKBONES = [f"{family}-{shape}" for family in ("clip", "siglip") for shape in SHAPES]
ONE_EACH = ["clip-more-vision", "siglip-more-text"]
BLIP = [f"blip-{shape}" for shape in SHAPES]
if importlib.util.find_spec("open_clip") is not None:
    BACKBONES.append("open_clip-more-text")
    ONE_EACH.append("open_clip-more-text")
PAIRING = ["cross-modal-adapter", "mv-adapter", "uniadapter"]
FUSING = ["hada"]
# These need prompts in texts, words without padding, or PEFT's own list of layers.
NOT_ON_BLIP = ["apollo", "coop", "maple", "mv-adapter", *(m for m in METHODS if ":" in m)]
# What a method refuses, with a clear error that its own tests look at.
REFUSED = {("cm3t", "open_clip")} | {(m, "blip") for m in NOT_ON_BLIP}  # cm3t: packed heads


def backbones_of(method: str) -> list[str]:
    """The backbones, by family and shape, on which a method is tried."""
    if method in FUSING:
        return ["fuse-more-text"]
    known = BACKBONES if method in PAIRING else ONE_EACH
    known = [*known, *(BLIP if method == "uniadapter" else ["blip-more-text"])]
    return [b for b in known if (method, b.partition("-")[0]) not in REFUSED]


CASES = [(m, b) for m in METHODS for b in backbones_of(m)]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def method(case):
    return case[0]


@pytest.fixture
def backbone(case):
    family, _, shape = case[1].partition("-")
    vision, text = SHAPES[shape]
    return small(family, vision_layers=vision, text_layers=text, seed=1)


@pytest.fixture
def shape(case):
    """Depths of the towers, as `small` takes them."""
    vision, text = SHAPES[case[1].partition("-")[2]]
    return {"vision_layers": vision, "text_layers": text}


def config_of(method: str):
    return make_config(method, OPTIONS.get(method))


def test_every_trained_tensor_gets_a_gradient_and_only_those(method, backbone) -> None:
    adapter = attach(backbone, config_of(method))
    trained = adapter.trained()
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == {
        id(p) for p in trained.values()
    }
    assert all(n.startswith("adapters.") for n, p in backbone.named_parameters() if p.requires_grad)
    # Nothing before a tensor that starts at zero has a gradient until that one has moved: LoRA's
    # A behind its B; MV-Adapter's calibration behind its gate, and that behind the up-projection.
    train(backbone, adapter, steps=2)
    loss(backbone).backward()
    assert all(p.grad is not None for p in trained.values())
    # A bias of the keys shifts all scores of a query alike, so its true gradient is zero.
    live = [n for n in trained if not n.endswith(("k_proj.bias", ".key.bias"))]
    assert [n for n in live if not trained[n].grad.any()] == []
    assert all(p.grad is None for p in backbone.model.parameters())


def test_backbone_is_bit_identical_after_training_and_detach(method, backbone) -> None:
    before, outputs, count = snapshot(backbone), features(backbone), hooks(backbone)
    names = [n for n, _ in backbone.named_parameters()]
    fingerprint = backbone.fingerprint
    adapter = attach(backbone, config_of(method))
    train(backbone, adapter)
    assert not same(features(backbone), outputs)
    assert same(snapshot(backbone), before)
    detach(backbone)
    assert same(snapshot(backbone), before)
    assert same(features(backbone), outputs)
    assert [n for n, _ in backbone.named_parameters()] == names
    assert not any(p.requires_grad for p in backbone.parameters())
    assert hooks(backbone) == count
    assert backbone.fingerprint == fingerprint


def test_training_lowers_the_loss(method, backbone) -> None:
    adapter = attach(backbone, config_of(method))
    before = float(loss(backbone).detach())
    train(backbone, adapter, steps=5, rate=0.01)
    assert float(loss(backbone).detach()) < before


def test_parameters_are_float32_and_finite_and_counted_once(method, backbone) -> None:
    adapter = attach(backbone, config_of(method))
    parameters = list(adapter.trained().values())
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in parameters)
    assert len({id(p) for p in parameters}) == len(parameters)
    assert adapter.count() == sum(p.numel() for p in parameters)
    summary = summarise(backbone, config_of(method))
    assert summary.trainable == adapter.count()
    assert sum(summary.per_tower.values()) == summary.trainable
    assert 0 < summary.share <= 1


def test_summary_needs_no_weights(method, backbone, shape) -> None:
    empty = small(backbone.family, **shape, weights=False)
    assert (
        summarise(empty, config_of(method)).to_dict()
        == summarise(backbone, config_of(method)).to_dict()
    )
    assert not any(p.requires_grad for p in empty.parameters())


def test_the_last_mlp_for_one_token_changes_nothing(method, backbone, monkeypatch) -> None:
    adapter = attach(backbone, config_of(method))
    train(backbone, adapter)

    def run() -> tuple[list[torch.Tensor], dict[str, torch.Tensor | None]]:
        backbone.zero_grad()
        torch.manual_seed(0)  # dropout
        loss(backbone).backward()
        return list(features(backbone)), {n: p.grad for n, p in adapter.named_trained()}

    ours, gradients = run()
    monkeypatch.setattr(pooled_token, "_unread", lambda tower, block: False)
    plain, expected = run()
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-4)


def test_save_and_load_give_equal_outputs(method, backbone, tmp_path) -> None:
    adapter = attach(backbone, config_of(method))
    train(backbone, adapter)
    expected = features(backbone)
    values = {n: p.detach().clone() for n, p in adapter.named_trained()}
    save_adapter(backbone, "default", tmp_path / "a")
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", framework="pt") as file:
        # Every tensor once, shared ones included: no more values than trained parameters.
        assert sorted(file.keys()) == sorted([*values, *adapter.kept()])
        assert sum(file.get_tensor(k).numel() for k in values) == adapter.count()
    detach(backbone)
    again = load_adapter(backbone, tmp_path / "a", name="again")
    assert same({n: p.detach() for n, p in again.named_trained()}, values)
    assert again.config == config_of(method)
    assert not again.training
    assert same(features(backbone), expected)


def test_adapter_of_another_backbone_is_refused(method, backbone, shape, tmp_path) -> None:
    attach(backbone, config_of(method))
    save_adapter(backbone, "default", tmp_path / "a")
    other = small(backbone.family, **shape, seed=2)
    with pytest.raises(UserError, match="another backbone: tiny"):
        load_adapter(other, tmp_path / "a")
    assert len(other.adapters) == 0
    assert hooks(other) == hooks(backbone) - hooks_of_active(backbone)


def hooks_of_active(backbone) -> int:
    with_adapter = hooks(backbone)
    with frozen(backbone):
        return with_adapter - hooks(backbone)


def test_strength_zero_equals_frozen_and_one_equals_trained(method, backbone) -> None:
    base = features(backbone)
    train(backbone, attach(backbone, config_of(method)))
    full = features(backbone)
    set_strength(backbone, 0)
    assert same(features(backbone), base)
    set_strength(backbone, 0.5)
    half = features(backbone)
    assert not same(half, base)
    assert not same(half, full)
    # CoOp leaves pictures alone and VPT texts, so both towers together.
    moved, most = (sum((a - b).norm() for a, b in zip(x, base, strict=True)) for x in (half, full))
    assert float(moved) < float(most)
    set_strength(backbone, 1.0)
    assert same(features(backbone), full)


def test_switching_between_two_adapters(method, backbone) -> None:
    base = features(backbone)
    first = attach(backbone, config_of(method), name="first")
    train(backbone, first)
    one = features(backbone)
    second = attach(backbone, config_of(method), name="second", seed=1)
    train(backbone, second, steps=4)
    two = features(backbone)
    assert not same(one, two)
    activate(backbone, "first")
    assert same(features(backbone), one)
    with frozen(backbone):
        assert same(features(backbone), base)
    assert same(features(backbone), one)
    activate(backbone, "second")
    assert same(features(backbone), two)
    activate(backbone, None)
    assert same(features(backbone), base)
    detach(backbone, "first")
    activate(backbone, "second")
    assert same(features(backbone), two)


def test_same_seed_same_start_whatever_the_global_state(method, backbone) -> None:
    torch.manual_seed(7)
    first = attach(backbone, config_of(method), name="first", seed=3).trained()
    torch.manual_seed(8)
    state = torch.get_rng_state()
    second = attach(backbone, config_of(method), name="second", seed=3).trained()
    assert torch.equal(torch.get_rng_state(), state)
    assert list(first) == list(second)
    assert same(
        {n: p.detach() for n, p in first.items()}, {n: p.detach() for n, p in second.items()}
    )


def test_gradients_of_one_adapter_do_not_reach_another(method, backbone) -> None:
    first = attach(backbone, config_of(method), name="first")
    second = attach(backbone, config_of(method), name="second")
    loss(backbone).backward()
    assert all(p.grad is None for p in first.trained().values())
    assert any(p.grad is not None for p in second.trained().values())


def test_samples_do_not_depend_on_their_batch(method, backbone) -> None:
    train(backbone, attach(backbone, config_of(method)))
    pixels, tokens = batch(backbone)
    with torch.no_grad():
        images = backbone.encode_image(pixels)
        texts = backbone.encode_text(tokens.ids, tokens.mask)
        for i in range(len(pixels)):
            alone = backbone.encode_image(pixels[i : i + 1])
            torch.testing.assert_close(alone[0], images[i], rtol=1e-4, atol=1e-5)
            alone = backbone.encode_text(tokens.ids[i : i + 1], tokens.mask[i : i + 1])
            torch.testing.assert_close(alone[0], texts[i], rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_stays_close(method, backbone) -> None:
    train(backbone, attach(backbone, config_of(method)))
    exact = features(backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = features(backbone)
        loss(backbone).backward()
    for a, b in zip(exact, rough, strict=True):
        similarity = torch.nn.functional.cosine_similarity(a, b.float())
        assert float(similarity.min()) > 0.99


@contextmanager
def untouched(backbone) -> Iterator[None]:
    """Nothing about the backbone changes inside, not even on failure."""
    before, outputs, count = snapshot(backbone), features(backbone), hooks(backbone)
    names, modes = list(backbone.adapters), [p.requires_grad for p in backbone.parameters()]
    yield
    assert same(snapshot(backbone), before)
    assert same(features(backbone), outputs)
    assert hooks(backbone) == count
    assert list(backbone.adapters) == names
    assert [p.requires_grad for p in backbone.parameters()] == modes


def test_plan_is_validated_before_anything_is_touched(method, backbone, monkeypatch) -> None:
    real = get_method(method)
    config = config_of(method)
    attach(backbone, config, name="kept")

    def broken(backbone, config):
        items = [i for i in real.plan(backbone, config) if isinstance(i, Insertion | Override)]
        if not backbone.sites():
            return [*real.plan(backbone, config), torch.nn.Linear(1, 1)]
        site = backbone.sites()[-2]
        wrong = torch.nn.Linear(site.width, site.width + 1)
        return [*items, Insertion(site, wrong)]

    bad = type(real)(real.name, real.config_class, broken, real.doc)
    monkeypatch.setattr("crossadapt.adapters.attach.method_of", lambda config: bad)
    with untouched(backbone), pytest.raises(UserError):
        attach(backbone, config)


def test_failure_while_building_leaves_nothing_behind(method, backbone, monkeypatch) -> None:
    def fail(self, named):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(AttachedAdapter, "_remember", fail)
    with untouched(backbone), pytest.raises(RuntimeError, match="out of memory"):
        attach(backbone, config_of(method))
