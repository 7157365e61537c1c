from __future__ import annotations

import copy

import pytest
import torch
from tests.adapting import CMA, WEIGHT, Scale, features, hooks, same, site, train

from crossadapt.adapters.attach import (
    activate,
    active,
    attach,
    attached,
    detach,
    frozen,
    set_strength,
)
from crossadapt.adapters.plan import Insertion, Override
from crossadapt.errors import UserError
from crossadapt.methods.full import FullConfig


class Cast(Scale):
    def forward(self, x):
        return (self.gain * x).double()


@pytest.mark.parametrize("name", ["", "a.b", "a b", "keys", "training", 3])
def test_bad_names_are_refused(backbone, name) -> None:
    with pytest.raises(UserError, match="cannot be an adapter name"):
        attach(backbone, CMA, name=name)


def test_taken_name_is_refused_and_the_first_stays(backbone) -> None:
    first = attach(backbone, CMA, name="door")
    with pytest.raises(UserError, match="'door' is already attached"):
        attach(backbone, FullConfig(), name="door")
    assert backbone.adapters["door"] is first
    assert active(backbone) is first


def test_unknown_adapter_names_the_nearest(backbone) -> None:
    attach(backbone, CMA, name="photos")
    for call in (detach, activate, attached):
        with pytest.raises(UserError, match="did you mean 'photos'"):
            call(backbone, "photo")
    assert active(backbone).name == "photos"
    detach(backbone, "photos")
    with pytest.raises(UserError, match="no adapter named 'photos'"):
        detach(backbone, "photos")


def test_hooks_handle_tuple_outputs_and_keep_the_rest(backbone, free) -> None:
    attention = site(backbone, "vision.1.attention")
    module = backbone.model.get_submodule(attention.path)
    attach(backbone, free([Insertion(attention, Scale(3.0))]))
    x = torch.randn(1, 5, 24)
    out = module(hidden_states=x, attention_mask=None)
    with frozen(backbone):
        base = module(hidden_states=x, attention_mask=None)
    assert isinstance(out, tuple)
    assert len(out) == len(base)
    torch.testing.assert_close(out[0], 3.0 * base[0])


def test_output_keeps_its_dtype(backbone, free) -> None:
    attach(backbone, free([Insertion(site(backbone, "vision.1.mlp"), Cast(1.0))]))
    image, _ = features(backbone)
    assert image.dtype == torch.float32


def test_one_module_at_several_sites_is_one_object(backbone, free) -> None:
    module = Scale()
    sites = [site(backbone, "vision.0.mlp"), site(backbone, "text.1.mlp")]
    adapter = attach(backbone, free([Insertion(s, module) for s in sites]))
    assert list(adapter.trained()) == ["vision.0.mlp.gain"]
    assert adapter.count() == 1


def test_insertion_and_override_in_one_plan(backbone, free) -> None:
    base = features(backbone)
    plan = [Insertion(site(backbone, "vision.0.mlp"), Scale()), Override(WEIGHT)]
    adapter = attach(backbone, free(plan))
    assert list(adapter.trained()) == ["vision.0.mlp.gain", WEIGHT]
    image, text = features(backbone)
    assert not torch.equal(image, base[0])
    assert torch.equal(text, base[1])
    train(backbone, adapter)
    assert not torch.equal(features(backbone)[1], base[1])
    detach(backbone)
    assert same(features(backbone), base)


def test_frozen_survives_exceptions_nesting_and_detach(backbone) -> None:
    base = features(backbone)
    train(backbone, attach(backbone, CMA))
    set_strength(backbone, 0.5)
    half = features(backbone)
    with frozen(backbone):
        with pytest.raises(KeyError), frozen(backbone):
            raise KeyError
        assert same(features(backbone), base)
    with pytest.raises(KeyError), frozen(backbone):
        raise KeyError
    assert same(features(backbone), half)
    with frozen(backbone):
        detach(backbone)
    assert active(backbone) is None
    assert same(features(backbone), base)
    with frozen(backbone):
        assert active(backbone) is None


def test_inactive_adapters_cost_no_hooks(backbone) -> None:
    count = hooks(backbone)
    attach(backbone, CMA)
    assert hooks(backbone) > count
    activate(backbone, None)
    assert hooks(backbone) == count
    activate(backbone, "default")
    activate(backbone, "default")
    detach(backbone)
    assert hooks(backbone) == count


@pytest.mark.parametrize("config", [CMA, FullConfig()])
def test_a_deep_copy_is_independent(backbone, config) -> None:
    train(backbone, attach(backbone, config))
    expected = features(backbone)
    twin = copy.deepcopy(backbone)
    assert same(features(twin), expected)
    with torch.no_grad():
        for parameter in twin.adapters["default"].trained().values():
            parameter.add_(0.1)
    assert same(features(backbone), expected)
    assert not same(features(twin), expected)
    with torch.no_grad():
        detach(twin)
    assert same(features(backbone), expected)


def test_train_and_eval_follow_the_backbone(backbone) -> None:
    adapter = attach(backbone, CMA)
    assert adapter.training
    backbone.eval()
    assert not adapter.insertions["vision_0_mlp"].dropout.training
    backbone.train()
    assert adapter.insertions["vision_0_mlp"].dropout.training
    assert not backbone.model.training


def test_shadow_dropout_follows_train_and_eval(backbone) -> None:
    pytest.importorskip("peft")
    from crossadapt.adapters.registry import make_config

    adapter = attach(backbone, make_config("peft:lora", {"dropout": 0.5}))
    train(backbone, adapter)
    backbone.train()
    assert not same(features(backbone), features(backbone))
    backbone.eval()
    assert same(features(backbone), features(backbone))


def test_adapters_follow_the_backbone_to_another_dtype_and_stay_bound(backbone) -> None:
    pytest.importorskip("peft")
    from crossadapt.adapters.registry import make_config

    for config in (CMA, FullConfig(), make_config("peft:lora")):
        attach(backbone, config)
        backbone.double()
        pixels = torch.randn(2, 3, *backbone.preprocess.size, dtype=torch.float64)
        assert backbone.encode_image(pixels).dtype == torch.float64
        backbone.float()
        detach(backbone)


def test_repr_tells_what_is_attached(backbone) -> None:
    attach(backbone, CMA, name="photos")
    assert "'photos', cross-modal-adapter" in repr(backbone)
