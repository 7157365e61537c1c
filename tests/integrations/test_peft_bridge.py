"""crossadapt methods inside PEFT and transformers, over every method that only inserts."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.adapting import batch, features, same
from torch import nn

from crossadapt.adapters.attach import attach
from crossadapt.adapters.plan import Insertion
from crossadapt.adapters.registry import get_method, make_config, method_names
from crossadapt.backbones import tiny
from crossadapt.errors import UserError
from crossadapt.integrations.peft import CrossAdaptConfig
from crossadapt.integrations.peft.layers import CrossAdaptLayer, give_one_owner

OPTIONS = {
    "adaptformer": {"r": 4, "dropout": 0.0},
    "cross-modal-adapter": {"r": 4, "d_s": 6},
    "mv-adapter": {"d": 8, "frames": 2, "tied": 1, "shrink": 1},
}

FUSING = ["hada"]


def only_inserts(name: str) -> bool:
    if name in FUSING:  # its plan needs several models
        return False
    plan = get_method(name).plan(tiny("clip"), make_config(name, OPTIONS.get(name)))
    return all(isinstance(step, Insertion) for step in plan)


PURE = [name for name in method_names() if only_inserts(name)]
OTHERS = [name for name in method_names() if name not in PURE]


@pytest.fixture(params=[(m, f) for m in PURE for f in ("clip", "siglip")], ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def model(case):
    return plain(case[1])


@pytest.fixture
def config(case):
    return CrossAdaptConfig(method=case[0], options=OPTIONS.get(case[0], {}), seed=1)


def plain(family: str) -> nn.Module:
    return tiny(family, vision_layers=2, text_layers=3).model


def inputs(family: str) -> dict[str, torch.Tensor]:
    pixels, tokens = batch(tiny(family, vision_layers=2, text_layers=3))
    return {"pixel_values": pixels, "input_ids": tokens.ids}


def run(model: nn.Module, family: str) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        out = model(**inputs(family))
    return out.image_embeds, out.text_embeds


def alike(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    """Equal to rounding: reloaded tensors lie elsewhere, and matrix kernels look at alignment."""
    return all(torch.allclose(x, y, rtol=0, atol=1e-6) for x, y in zip(a, b, strict=True))


def fit(model: nn.Module, family: str, steps: int = 4) -> list[float]:
    """A plain training loop: what a PEFT user would write."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        logits = model(**inputs(family)).logits_per_text
        loss = nn.functional.cross_entropy(logits, torch.arange(len(logits)))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def layers(model: nn.Module) -> list[CrossAdaptLayer]:
    return [m for m in model.modules() if isinstance(m, CrossAdaptLayer)]


def test_there_is_something_to_test() -> None:
    assert "cross-modal-adapter" in PURE
    assert "full" in OTHERS


def test_only_the_adapter_trains_and_as_many_tensors_as_crossadapt_trains(
    case, model, config
) -> None:
    before = {n: p.clone() for n, p in model.named_parameters()}
    tuned = get_peft_model(model, config)
    trained = {n: p for n, p in tuned.named_parameters() if p.requires_grad}
    assert all(".crossadapt_insertion.default." in n for n in trained)
    backbone = tiny(case[1], vision_layers=2, text_layers=3)
    adapter = attach(backbone, make_config(case[0], OPTIONS.get(case[0])))
    assert sum(p.numel() for p in trained.values()) == adapter.count()
    losses = fit(tuned, case[1])
    assert losses[-1] < losses[0]
    for name, parameter in tuned.get_base_model().named_parameters():
        plain_name = name.replace(".base_layer", "")
        assert (plain_name in before) == (".crossadapt_insertion." not in name)
        if plain_name in before:
            assert torch.equal(parameter, before[plain_name])


def test_every_trained_tensor_gets_a_gradient(case, model, config) -> None:
    tuned = get_peft_model(model, config)
    tuned(**inputs(case[1])).logits_per_text.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in tuned.parameters())


def test_equal_to_the_same_adapter_attached_by_crossadapt(case, model, config) -> None:
    get_peft_model(model, config)
    backbone = tiny(case[1], vision_layers=2, text_layers=3)
    attach(backbone, make_config(case[0], OPTIONS.get(case[0])), seed=1)
    for ours, theirs in zip(features(backbone), run(model, case[1]), strict=True):
        torch.testing.assert_close(nn.functional.normalize(ours, dim=-1), theirs)


@pytest.mark.parametrize("low_memory", [False, True])
def test_reload_is_equal_and_shared_tensors_are_one_object(
    case, model, config, tmp_path, low_memory
) -> None:
    tuned = get_peft_model(model, config)
    fit(tuned, case[1])
    trained = run(tuned, case[1])
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(plain(case[1]), tmp_path, low_cpu_mem_usage=low_memory)
    assert alike(trained, run(again, case[1]))
    assert not any(p.requires_grad for p in again.parameters())
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("default" in name for name in saved)
    count = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert sum(tensor.numel() for tensor in saved.values()) == count
    for one in (tuned, again) if case[0] == "cross-modal-adapter" else ():
        vision = one.base_model.model.vision_model.encoder.layers[-1]
        text = one.base_model.model.text_model.encoder.layers[-1]
        for kind in ("self_attn", "mlp"):
            parts = [getattr(layer, kind).crossadapt_insertion.default for layer in (vision, text)]
            assert parts[0].shared is parts[1].shared
            assert parts[0].shared.weight.device.type == "cpu"


def test_disabled_it_is_the_base_model_bit_for_bit(case, model, config) -> None:
    frozen = run(model, case[1])
    tuned = get_peft_model(model, config)
    fit(tuned, case[1])
    trained = run(tuned, case[1])
    assert not same(frozen, trained)
    with tuned.disable_adapter():
        assert same(frozen, run(tuned, case[1]))
    assert same(trained, run(tuned, case[1]))
    assert same(frozen, run(tuned.unload(), case[1]))
    assert layers(model) == []


def test_several_named_adapters(case, model, config, tmp_path) -> None:
    tuned = get_peft_model(model, config, adapter_name="one")
    fit(tuned, case[1])
    one = run(tuned, case[1])
    others = {"dropout": 0.0} if "dropout" in config.options else {}
    other = CrossAdaptConfig(method=case[0], options=others, seed=2)
    tuned.add_adapter("two", other)
    assert same(one, run(tuned, case[1]))
    tuned.set_adapter("two")
    fit(tuned, case[1])
    two = run(tuned, case[1])
    assert not same(one, two)
    assert all(
        p.requires_grad == (".two." in n)
        for n, p in tuned.named_parameters()
        if "crossadapt_insertion" in n
    )
    tuned.set_adapter("one")
    assert same(one, run(tuned, case[1]))
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(plain(case[1]), tmp_path / "two", adapter_name="x")
    assert alike(two, run(again, case[1]))
    again.load_adapter(tmp_path / "one", adapter_name="y")
    again.set_adapter("y")
    assert alike(one, run(again, case[1]))
    again.delete_adapter("x")
    assert alike(one, run(again, case[1]))


def test_transformers_can_hold_the_adapter_without_the_tuner(case, model, config, tmp_path) -> None:
    frozen = run(model, case[1])
    model.add_adapter(config, "one")
    fit(model, case[1])
    trained = run(model, case[1])
    assert not same(frozen, trained)
    model.disable_adapters()
    assert same(frozen, run(model, case[1]))
    model.enable_adapters()
    model.save_pretrained(tmp_path)
    again = plain(case[1])
    again.load_adapter(str(tmp_path))
    assert alike(trained, run(again, case[1]))
    model.delete_adapter("one")
    assert same(frozen, run(model, case[1]))


def test_a_deep_copy_keeps_the_sharing(case, model, config) -> None:
    tuned = get_peft_model(model, config)
    twin = copy.deepcopy(tuned)
    fit(tuned, case[1])
    count = sum(p.requires_grad for p in tuned.parameters())
    assert sum(p.requires_grad for p in twin.parameters()) == count
    assert not same(run(tuned, case[1]), run(twin, case[1]))
    fit(twin, case[1])
    assert same(run(tuned, case[1]), run(twin, case[1]))


def test_merging_is_refused_and_leaves_the_model_usable(case, model, config) -> None:
    tuned = get_peft_model(model, config)
    before = run(tuned, case[1])
    for merge in (tuned.merge_adapter, tuned.unmerge_adapter, tuned.merge_and_unload):
        with pytest.raises(UserError, match="cannot be merged"):
            merge()
    assert same(before, run(tuned, case[1]))


@pytest.mark.parametrize("method", [*OTHERS, "peft:lora"])
def test_methods_that_do_not_only_insert_are_refused(method) -> None:
    model = plain("clip")
    reason = "fuses several backbones" if method in FUSING else "cannot be used through PEFT"
    with pytest.raises(UserError, match=reason):
        get_peft_model(model, CrossAdaptConfig(method=method))
    assert layers(model) == []


def test_the_config_is_resolved_and_survives_json(tmp_path) -> None:
    config = CrossAdaptConfig(options={"r": 3})
    assert config.options == {**config.options, "r": 3, "d_s": 16}
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "CROSSADAPT"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "cross-modal-adaptor"}, "did you mean 'cross-modal-adapter'"),
        ({"options": {"rr": 3}}, "did you mean 'r'"),
    ],
)
def test_a_wrong_config_is_a_user_error(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        CrossAdaptConfig(**arguments)


def test_other_models_are_refused() -> None:
    with pytest.raises(UserError, match="no vision and text tower"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), CrossAdaptConfig())


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_loading_is_strict(tmp_path, damage) -> None:
    get_peft_model(plain("clip"), CrossAdaptConfig()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors[name + "2"] = tensors[name].clone()
    else:
        tensors[name] = torch.zeros(1, 1)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="file of adapter 'default'"):
        PeftModel.from_pretrained(plain("clip"), tmp_path)


def test_an_adapter_of_another_depth_is_refused(tmp_path) -> None:
    get_peft_model(plain("clip"), CrossAdaptConfig()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="made for other modules"):
        PeftModel.from_pretrained(tiny("clip", text_layers=2).model, tmp_path)


def test_kinds_are_not_mixed_in_one_model() -> None:
    tuned = get_peft_model(plain("clip"), CrossAdaptConfig())
    with pytest.raises(ValueError):
        tuned.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"]))


def test_shared_parts_have_one_owner_whatever_holds_them() -> None:
    part, whole = nn.Linear(2, 2), nn.Linear(2, 2)
    modules = give_one_owner([nn.Sequential(part), nn.Sequential(nn.ReLU(), part), whole, whole])
    holder = nn.ModuleList(modules)
    assert len(holder.state_dict()) == 4
    x = torch.randn(3, 2)
    assert torch.equal(modules[1](x), part(x.relu()))
    assert torch.equal(modules[3](x), whole(x))
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    two.weight = one.weight
    with pytest.raises(UserError, match="share a bare parameter"):
        give_one_owner([one, two])
