"""Encoding equals the Hugging Face model's own; frames, overrides, shadow, frozen state."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from crossadapt.backbones import choose_attention, load, tiny
from crossadapt.backbones.hf import pooled
from crossadapt.errors import UserError

FAMILIES = ["clip", "siglip"]


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("folder", ["clip", "siglip"], indirect=True)
def test_image_features_equal_the_models_own(folder):
    backbone = load(str(folder))
    batch = pixels(3)
    expected = backbone.model.get_image_features(pixel_values=batch).pooler_output
    assert torch.equal(backbone.encode_image(batch), expected)
    assert expected.shape == (3, backbone.embedding_dim)


def test_features_of_both_library_generations():
    features = torch.ones(2, 3)
    assert pooled(features) is features
    assert pooled(SimpleNamespace(pooler_output=features)) is features


@pytest.mark.parametrize("family", FAMILIES)
def test_frames(family):
    backbone = tiny(family)
    video = pixels(2, 3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    features = backbone.encode_frames(video, mask)
    assert features.shape == (2, 3, backbone.embedding_dim)
    assert (features[~mask] == 0).all()
    torch.testing.assert_close(features[mask], backbone.encode_image(video[mask]))
    nothing = backbone.encode_frames(video, torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(nothing, torch.zeros_like(features))


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_name_real_modules_and_widths(family):
    backbone = tiny(family, vision_layers=1, text_layers=2)
    sites = backbone.sites()
    assert [site.name for site in sites] == [
        "vision.embedding",
        "vision.0.attention",
        "vision.0.mlp",
        "vision.0.block",
        "vision.0.residual",
        "text.embedding",
        "text.0.attention",
        "text.0.mlp",
        "text.0.block",
        "text.0.residual",
        "text.1.attention",
        "text.1.mlp",
        "text.1.block",
        "text.1.residual",
    ]
    seen = {}

    def keep(name):
        return lambda _module, _args, out: seen.update(
            {name: out[0] if isinstance(out, tuple) else out}
        )

    for site in sites:
        backbone.model.get_submodule(site.path).register_forward_hook(keep(site.name))
    backbone.encode_image(pixels(1))
    ids = backbone.tokenize(["a red door"]).ids
    backbone.encode_text(ids)
    patches = 17 if family == "clip" else 16
    for site in sites:
        tokens = patches if site.tower == "vision" else ids.shape[1]
        assert seen[site.name].shape == (1, tokens, site.width)
        assert site.width == backbone.width(site.tower)
    assert (backbone.depth("vision"), backbone.depth("text")) == (1, 2)
    with pytest.raises(UserError, match="fusion"):
        backbone.width("fusion")


@pytest.mark.parametrize("family", FAMILIES)
def test_children_frozen_and_always_in_evaluation_mode(family):
    backbone = tiny(family)
    backbone.shadow = nn.Linear(1, 1)
    assert [name for name, _ in backbone.named_children()] == ["model", "adapters"]
    backbone.adapters["x"] = nn.Dropout()
    backbone.train()
    assert backbone.adapters["x"].training
    assert not any(module.training for module in backbone.model.modules())
    assert not any(p.requires_grad for p in backbone.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_overriding_every_parameter_equals_a_model_with_those_values(family):
    """Includes what a module reads from another directly, as SigLIP's pooling head does."""
    backbone, other = tiny(family, seed=0), tiny(family, seed=1)
    before = copy.deepcopy(backbone.model.state_dict())
    objects = dict(backbone.model.named_parameters())
    backbone.override_source = lambda: dict(other.model.named_parameters())
    ids = backbone.tokenize(["a red door"]).ids
    assert torch.equal(backbone.encode_image(pixels(2)), other.encode_image(pixels(2)))
    assert torch.equal(backbone.encode_text(ids), other.encode_text(ids))
    backbone.override_source = None
    assert all(p is objects[name] for name, p in backbone.model.named_parameters())
    assert all(torch.equal(v, before[name]) for name, v in backbone.model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_overrides_are_fresh_at_every_call_and_take_gradients(family):
    backbone = tiny(family)
    scale = nn.Parameter(backbone.model.logit_scale.detach() + 1)
    dial = {"strength": 0.0}
    name = "text_model.final_layer_norm.weight"
    frozen = backbone.model.get_parameter(name)
    weight = nn.Parameter(frozen.detach() * 2)
    backbone.override_source = lambda: {
        "logit_scale": scale,
        name: frozen + dial["strength"] * (weight - frozen),
    }
    ids = backbone.tokenize(["x"]).ids
    plain = tiny(family).encode_text(ids)
    assert torch.equal(backbone.encode_text(ids), plain)
    dial["strength"] = 1.0
    features = backbone.encode_text(ids)
    assert not torch.allclose(features, plain)
    (features.sum() + backbone.logit_scale).backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
    assert scale.grad is not None
    assert backbone.logit_scale.shape == ()
    assert backbone.logit_scale.item() == pytest.approx(scale.item())


def test_overrides_are_undone_after_an_exception():
    backbone = tiny("clip")
    parameter = backbone.model.text_projection.weight
    backbone.override_source = lambda: {"text_projection.weight": parameter + 1}
    with pytest.raises(ValueError, match="Sequence length"):
        backbone.encode_text(torch.zeros(1, 99, dtype=torch.int64))
    assert backbone.model.text_projection.weight is parameter


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"no.such.weight": torch.ones(1)}, KeyError),
        ({"text_projection.bias": torch.ones(1)}, KeyError),
        ({"text_projection.weight": torch.ones(1)}, ValueError),
    ],
)
def test_overrides_that_do_not_fit_are_refused(overrides, error):
    backbone = tiny("clip")
    backbone.override_source = lambda: overrides
    with pytest.raises(error, match=r"text_projection|no\.such"):
        backbone.encode_image(pixels(1))


def test_shadow_runs_instead_of_the_model():
    backbone = tiny("clip")
    expected = backbone.encode_image(pixels(1))
    shadow = copy.copy(backbone.model)
    shadow._modules = dict(backbone.model._modules)
    shadow.visual_projection = nn.Linear(24, 12)
    backbone.shadow = shadow
    assert not torch.allclose(backbone.encode_image(pixels(1)), expected)
    backbone.shadow = None
    assert torch.equal(backbone.encode_image(pixels(1)), expected)


def test_attention_choice():
    assert choose_attention(65, 64, "cpu") == "eager"
    assert choose_attention(197, 64, "cpu") == "sdpa"
    assert choose_attention(65, 64, "cuda") == "sdpa"
    assert load("tiny:clip").attention == {"vision": "eager", "text": "eager"}
    assert load("config:clip-vit-base-patch16", weights=False, attention="eager").attention == {
        "vision": "eager",
        "text": "eager",
    }
    with pytest.raises(UserError, match="flash"):
        load("tiny:clip", attention="flash")


@pytest.mark.parametrize("family", FAMILIES)
def test_both_attention_implementations_agree(family):
    backbone = tiny(family)
    ids = backbone.tokenize(["a red door", "x"]).ids
    assert backbone.use_attention("eager") == {"vision": "eager", "text": "eager"}
    eager = backbone.encode_text(ids), backbone.encode_image(pixels(2))
    backbone.use_attention("sdpa")
    fused = backbone.encode_text(ids), backbone.encode_image(pixels(2))
    torch.testing.assert_close(eager, fused, atol=1e-5, rtol=0)
