"""Full, partial and projection tuning: published counts and what exactly is trained."""

from __future__ import annotations

import pytest
import torch

from crossadapt.adapters.attach import attach
from crossadapt.adapters.parts import parameter_parts
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import load, tiny
from crossadapt.errors import UserError
from crossadapt.methods.full import FullConfig
from crossadapt.methods.partial import PartialConfig
from crossadapt.methods.projection import ProjectionConfig


@pytest.fixture(scope="module")
def vit_b_32():
    return load("config:clip-vit-base-patch32", weights=False)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (FullConfig(), 123_540_993),
        (FullConfig(scope="all"), 151_277_313),
        (PartialConfig(), 10_240_256),
        (PartialConfig(layers=12, heads=True), 123_540_993),
        (PartialConfig(layers=6, heads=True), 62_099_457),
        (PartialConfig(layers=3, heads=True), 31_378_689),
        (PartialConfig(layers=1, heads=True), 10_898_177),
        (PartialConfig(layers=0, heads=True), 657_921),
        (ProjectionConfig(), 657_921),
    ],
)
def test_published_counts(vit_b_32, config, count: int) -> None:
    summary = summarise(vit_b_32, config)
    assert summary.trainable == count
    assert summary.total == 151_277_313


def test_published_rounding_and_share(vit_b_32) -> None:
    rows = {6: 62.10, 3: 31.38, 1: 10.90, 0: 0.66}
    for layers, published in rows.items():
        summary = summarise(vit_b_32, PartialConfig(layers=layers, heads=True))
        assert round(summary.trainable / 1e6, 2) == published
    full = summarise(vit_b_32, FullConfig())
    assert round(100 * full.share, 2) == 81.67
    # Token and position embeddings, class token, patch convolution, the norm in front.
    frozen = (25_296_896, 39_424, 768, 38_400, 2_359_296, 1_536)
    assert full.total - full.trainable == sum(frozen) == 27_736_320
    assert full.per_tower == {
        "vision": 85_054_464 + 1_536 + 393_216,
        "text": 37_828_608 + 1_024 + 262_144,
        "shared": 1,
    }


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_parts_cover_every_parameter_once(family: str) -> None:
    backbone = tiny(family)
    parts = parameter_parts(backbone)
    everything = [*parts.stem, *parts.heads, *(n for names in parts.layers.values() for n in names)]
    assert sorted(everything) == sorted(n for n, _ in backbone.model.named_parameters())
    assert len(parts.layers) == backbone.depth("vision") + backbone.depth("text")


def test_heads_of_clip() -> None:
    assert set(attach(tiny("clip"), ProjectionConfig()).trained()) == {
        "logit_scale",
        "vision_model.post_layernorm.weight",
        "vision_model.post_layernorm.bias",
        "text_model.final_layer_norm.weight",
        "text_model.final_layer_norm.bias",
        "visual_projection.weight",
        "text_projection.weight",
    }


def test_heads_of_siglip() -> None:
    names = set(attach(tiny("siglip"), ProjectionConfig()).trained())
    heads = {"logit_scale", "logit_bias", "text_model.head.weight", "vision_model.head.probe"}
    assert heads < names
    assert not any("layers" in n or "embeddings" in n for n in names)


def test_full_leaves_the_embeddings_frozen() -> None:
    names = set(attach(tiny("clip"), FullConfig()).trained())
    assert not any("embeddings" in n or "pre_layrnorm" in n for n in names)
    assert "vision_model.encoder.layers.0.mlp.fc1.weight" in names


def test_partial_takes_the_last_layers_of_unequal_towers() -> None:
    backbone = tiny("clip", vision_layers=2, text_layers=4)
    names = set(attach(backbone, PartialConfig(layers=2)).trained())
    found = {tuple(n.split(".")[:4:3]) for n in names}
    assert found == {
        ("vision_model", "0"),
        ("vision_model", "1"),
        ("text_model", "2"),
        ("text_model", "3"),
    }
    with pytest.raises(UserError, match="layers is 3 but the vision tower has 2"):
        attach(backbone, PartialConfig(layers=3), name="other")


def test_copies_start_equal_and_are_independent() -> None:
    backbone = tiny("clip")
    adapter = attach(backbone, FullConfig(scope="all"))
    originals = dict(backbone.model.named_parameters())
    for name, copy in adapter.trained().items():
        assert torch.equal(copy, originals[name])
        assert copy.data_ptr() != originals[name].data_ptr()


@pytest.mark.parametrize(
    "build",
    [
        lambda: FullConfig(scope="some"),
        lambda: PartialConfig(layers=0),
        lambda: PartialConfig(layers=-1),
    ],
)
def test_impossible_options_are_errors(build) -> None:
    with pytest.raises(UserError):
        build()
