"""PEFT's methods inside crossadapt, over every method and family."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import fields, replace

import pytest
import torch
from tests.adapting import batch, features, hooks, loss, same, snapshot, train
from torch import nn

from crossadapt.adapters.attach import activate, attach, detach, set_strength
from crossadapt.adapters.folder import load_adapter, save_adapter
from crossadapt.adapters.registry import make_config
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import tiny
from crossadapt.errors import UserError
from crossadapt.integrations.peft import (
    PeftDoraConfig,
    PeftIA3Config,
    PeftLoraConfig,
    PeftOftConfig,
    PeftVeraConfig,
    peft_method,
    peft_method_names,
    rank_for_budget,
)
from crossadapt.integrations.peft.configs import PROJECTIONS
from crossadapt.integrations.peft.methods import target_layers
from crossadapt.integrations.peft.shadow import structural_copy
from crossadapt.integrations.peft.view import as_backbone

# The families differ in names and pooling only, which the first three methods show.
CASES = [(method, "clip") for method in peft_method_names()]
CASES += [(method, "siglip") for method in ("lora", "dora", "ia3")]
if importlib.util.find_spec("open_clip") is not None:
    CASES += [(method, "open_clip") for method in peft_method_names()]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def config(case):
    config = peft_method(case[0]).config_class()
    # Every projection that the method can take, and small ranks.
    small = {"r": 4} if case[0] != "vera" and hasattr(config, "r") else {}
    return replace(config, target=PROJECTIONS, **small)


@pytest.fixture
def backbone(case):
    return tiny(case[1], vision_layers=1, text_layers=2)


def scramble(adapter) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter.trained().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_a_new_adapter_starts_at_the_frozen_model(backbone, config) -> None:
    before = features(backbone)
    attach(backbone, config)
    for old, new in zip(before, features(backbone), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)


def test_every_trained_tensor_gets_a_gradient_at_once(backbone, config) -> None:
    adapter = attach(backbone, config)
    loss(backbone).backward()
    assert [n for n, p in adapter.trained().items() if p.grad is None] == []
    assert all(p.grad is None for p in backbone.model.parameters())
    scramble(adapter)  # now no factor is zero any more
    adapter.zero_grad()
    loss(backbone).backward()
    # A shift of the keys changes all scores of a query alike.
    live = {n: p for n, p in adapter.trained().items() if ".k_proj." not in n}
    assert [n for n, p in live.items() if not p.grad.any()] == []


def test_both_towers_change_and_the_backbone_does_not(backbone, config) -> None:
    before, values = features(backbone), snapshot(backbone)
    tree = [(n, type(m)) for n, m in backbone.model.named_modules()]
    adapter = attach(backbone, config)
    train(backbone, adapter)
    for old, new in zip(before, features(backbone), strict=True):
        assert not torch.allclose(old, new, atol=1e-6)
    assert tree == [(n, type(m)) for n, m in backbone.model.named_modules()]
    assert same(values, snapshot(backbone))
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert hooks(backbone) == 0
    detach(backbone)
    assert same(before, features(backbone))


def test_strength_is_exact_at_both_ends_and_moves_in_between(backbone, config) -> None:
    frozen = features(backbone)
    adapter = attach(backbone, config)
    scramble(adapter)
    adapter.eval()
    tuned = features(backbone)
    set_strength(backbone, 0.0)
    assert same(frozen, features(backbone))
    set_strength(backbone, 0.5)
    half = features(backbone)
    assert not same(half, frozen)
    assert not same(half, tuned)
    set_strength(backbone, 1.0)
    assert same(tuned, features(backbone))


def test_layer_strength_interpolates_between_base_and_tuned(backbone, config) -> None:
    adapter = attach(backbone, config)
    scramble(adapter)
    adapter.eval()
    path, base = next(iter(target_layers(backbone, config).items()))
    layer = backbone.shadow.get_submodule(path)
    x = torch.randn(2, 3, base.in_features)
    with torch.no_grad():
        tuned = layer(x)
        set_strength(backbone, 0.25)
        torch.testing.assert_close(layer(x), 0.75 * base(x) + 0.25 * tuned)
        layer.forward.strength = 0.0
        assert torch.equal(layer(x), base(x))


def test_the_seed_alone_decides_the_start(backbone, config) -> None:
    torch.manual_seed(1)
    first = attach(backbone, config, name="first", seed=3)
    state = torch.manual_seed(2).get_state()
    again = attach(backbone, config, name="again", seed=3)
    assert same(first.trained(), again.trained())
    assert torch.equal(state, torch.get_rng_state())


def test_save_and_load_under_stable_names(backbone, config, tmp_path) -> None:
    adapter = attach(backbone, config, name="trained", seed=1)
    scramble(adapter)
    adapter.eval()
    tuned = features(backbone)
    save_adapter(backbone, "trained", tmp_path / "a")
    loaded = load_adapter(backbone, tmp_path / "a", name="loaded")
    loaded.eval()
    assert loaded.config == config
    assert same(tuned, features(backbone))
    activate(backbone, "trained")
    assert same(tuned, features(backbone))
    for name in loaded.trained():
        assert "default" not in name
        assert "base_layer" not in name
        assert name.startswith(tuple(site.path for site in backbone.sites() if site.layer >= 0))


def test_half_precision_backbones_keep_their_dtype(backbone, config) -> None:
    backbone.model.to(torch.bfloat16)
    adapter = attach(backbone, config)
    pixels, tokens = batch(backbone)
    image = backbone.encode_image(pixels.bfloat16())
    text = backbone.encode_text(tokens.ids, tokens.mask)
    assert image.dtype == text.dtype == torch.bfloat16
    (image.sum() + text.sum()).backward()
    assert {p.dtype for p in adapter.trained().values()} == {torch.float32}


def test_summary_counts_what_attach_trains_even_without_weights(case, backbone, config) -> None:
    empty = tiny(case[1], vision_layers=1, text_layers=2, weights=False)
    assert summarise(empty, config).trainable == attach(backbone, config).count()


def test_documented_options_reach_the_registry(case) -> None:
    method = peft_method(case[0])
    assert method.name == f"peft:{case[0]}" == method.config_class.method
    assert method.doc
    config = make_config(method.name, {"target": ["fc1"], "towers": "text"})
    assert (config.target, config.towers) == (("fc1",), "text")
    assert len(fields(config)) >= 2


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_targets_are_the_encoder_blocks_only(family) -> None:
    backbone = tiny(family, vision_layers=1, text_layers=2)
    everything = target_layers(backbone, PeftLoraConfig(target=PROJECTIONS))
    assert len(everything) == 3 * len(PROJECTIONS)
    assert not any("head" in path for path in everything)
    text = target_layers(backbone, PeftLoraConfig(towers="text"))
    assert len(text) == 2 * 3
    assert all(path.startswith("text_model.") for path in text)


def test_ia3_scales_the_input_of_the_second_mlp_layer() -> None:
    backbone = tiny("clip", vision_layers=1, text_layers=1)
    adapter = attach(backbone, PeftIA3Config())
    sizes = {n: p.numel() for n, p in adapter.trained().items() if n.startswith("vision")}
    layer = backbone.model.vision_model.encoder.layers[0].mlp.fc2
    assert next(s for n, s in sizes.items() if "fc2" in n) == layer.in_features


def test_rslora_changes_the_scale() -> None:
    backbone = tiny("clip", vision_layers=1, text_layers=1)
    outputs = []
    for rslora in (False, True):
        adapter = attach(backbone, PeftLoraConfig(r=4, rslora=rslora), name=f"rs{rslora}")
        scramble(adapter)
        outputs.append(features(backbone))
    assert not same(*outputs)


def test_dropout_acts_in_training_mode_only() -> None:
    backbone = tiny("clip", vision_layers=1, text_layers=1)
    adapter = attach(backbone, PeftLoraConfig(dropout=0.5))
    scramble(adapter)
    adapter.train()
    torch.manual_seed(0)
    assert not same(features(backbone), features(backbone))
    adapter.eval()
    assert same(features(backbone), features(backbone))


def test_vera_projections_follow_their_own_seed(tmp_path) -> None:
    backbone = tiny("clip", vision_layers=1, text_layers=1)
    outputs = []
    for name, seed, projection in (("a", 0, 0), ("b", 5, 0), ("c", 0, 1)):
        adapter = attach(
            backbone, PeftVeraConfig(r=8, projection_seed=projection), name=name, seed=seed
        )
        scramble(adapter)
        outputs.append(features(backbone))
    assert same(outputs[0], outputs[1])
    assert not same(outputs[0], outputs[2])


def test_the_structural_copy_shares_tensors_and_no_hooks() -> None:
    model = tiny("siglip", vision_layers=1, text_layers=1).model
    model.vision_model.register_forward_hook(lambda *_: None)
    twin = structural_copy(model)
    for (name, original), (_, shared) in zip(
        model.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert original is shared, name
    assert len(twin.vision_model._forward_hooks) == 0
    assert len(model.vision_model._forward_hooks) == 1
    assert twin.config is model.config
    twin.vision_model.encoder.layers[0].mlp.fc1 = nn.Identity()
    assert isinstance(model.vision_model.encoder.layers[0].mlp.fc1, nn.Linear)
    model.double()
    assert all(t.dtype == torch.float64 for t in twin.parameters())


def test_a_deep_copy_of_an_adapted_backbone_stands_alone() -> None:
    backbone = tiny("clip", vision_layers=1, text_layers=1)
    adapter = attach(backbone, PeftLoraConfig(r=2))
    scramble(adapter)
    tuned = features(backbone)
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in adapter.trained().values():
            parameter.zero_()
    assert same(tuned, features(twin))


@pytest.mark.parametrize("method", ["lora", "peft:dora"])
@pytest.mark.parametrize("budget", [1, 3000, 5200, 20000])
def test_rank_for_budget_is_the_nearest(method, budget) -> None:
    backbone = tiny("clip")
    rank = rank_for_budget(backbone, method, budget)
    config = peft_method(method.removeprefix("peft:")).config_class

    def off(r: int) -> int:
        return abs(summarise(backbone, config(r=r)).trainable - budget)

    assert rank >= 1
    assert off(rank) <= min(off(r) for r in (max(1, rank - 1), rank + 1))


def test_rank_for_budget_takes_other_layers() -> None:
    backbone = tiny("clip")
    one = rank_for_budget(backbone, "lora", 5000, config=PeftLoraConfig(target=("q_proj",)))
    assert one > rank_for_budget(backbone, "lora", 5000)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (PeftLoraConfig(target=("q_prj",)), "peft:lora.target"),
        (PeftLoraConfig(target=()), "peft:lora.target"),
        (PeftLoraConfig(r=0), "peft:lora.r"),
        (PeftDoraConfig(dropout=1.0), "peft:dora.dropout"),
        (PeftOftConfig(block_size=7), "vision_model.encoder"),
    ],
)
def test_wrong_options_are_user_errors_before_anything_is_touched(config, where) -> None:
    backbone = tiny("clip", vision_layers=1, text_layers=1)
    with pytest.raises(UserError, match=where):
        attach(backbone, config)
    assert len(backbone.adapters) == 0


def test_unknown_methods_and_budgets_are_user_errors() -> None:
    with pytest.raises(UserError, match="did you mean 'lora'"):
        peft_method("lorra")
    backbone = tiny("clip")
    with pytest.raises(UserError, match="not set by a rank"):
        rank_for_budget(backbone, "peft:ia3", 100)
    with pytest.raises(UserError, match="budget is 0"):
        rank_for_budget(backbone, "lora", 0)
    with pytest.raises(UserError, match="no vision and text tower"):
        as_backbone(nn.Linear(2, 2))
