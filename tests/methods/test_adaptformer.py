"""AdaptFormer and the attention adapter: published counts, and where the branches stand."""

from __future__ import annotations

import pytest
import torch
from tests.adapting import batch, features, same, site, train
from torch.nn import functional

from crossadapt.adapters.attach import attach, detach, set_strength
from crossadapt.adapters.mixture import mixed
from crossadapt.adapters.plan import Insertion
from crossadapt.adapters.summary import summarise
from crossadapt.adapters.validate import check_plan
from crossadapt.backbones import load, tiny
from crossadapt.errors import UserError
from crossadapt.layers.bottleneck import Bottleneck, ParallelBottleneck
from crossadapt.methods.adaptformer import AdaptFormerConfig
from crossadapt.methods.attention_adapter import AttentionAdapterConfig

BOTH = [AdaptFormerConfig, AttentionAdapterConfig]


@pytest.mark.parametrize("config", BOTH)
@pytest.mark.parametrize(("r", "count", "published"), [(16, 507_264, 0.5), (64, 1_982_976, 2.0)])
def test_counts_of_the_core_paper_s_rows(config, r, count, published) -> None:
    found = summarise(load("config:clip-vit-base-patch32", weights=False), config(r=r)).trainable
    assert found == count == 12 * (2 * r * 1280 + 2 * r + 1280)
    assert round(count / 1e6, 1) == published


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_adaptformer_starts_as_the_frozen_model(family) -> None:
    backbone = tiny(family)
    frozen = features(backbone)
    attach(backbone, AdaptFormerConfig(r=4))
    assert same(features(backbone), frozen)


def test_the_branch_sees_what_the_mlp_sees_and_is_added_beside_it() -> None:
    backbone = tiny("clip")
    adapter = attach(backbone, AdaptFormerConfig(r=4, scale=0.3, dropout=0.0))
    train(backbone, adapter)
    branch = adapter.insertions["text_1_mlp"]
    mlp = backbone.model.get_submodule(site(backbone, "text.1.mlp").path)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        z = torch.relu(functional.linear(x, branch.down.weight, branch.down.bias))
        added = 0.3 * functional.linear(z, branch.up.weight, branch.up.bias)
        found = mlp(x)
        set_strength(backbone, 0.5)
        half = mlp(x)
        detach(backbone)
        plain = mlp(x)
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(found, plain + added)
    torch.testing.assert_close(half, plain + 0.5 * added)


def test_where_the_modules_stand() -> None:
    backbone = tiny("clip", vision_layers=2, text_layers=3)
    for config, kind, module in (
        (AdaptFormerConfig(), "mlp", ParallelBottleneck),
        (AttentionAdapterConfig(), "attention", Bottleneck),
    ):
        adapter = attach(backbone, config, name=kind)
        wanted = [f"vision_{i}_{kind}" for i in range(2)] + [f"text_{i}_{kind}" for i in range(3)]
        assert list(adapter.insertions) == wanted
        assert all(type(m) is module for m in adapter.insertions.values())


def test_rows_of_a_mixture_come_out_as_if_alone() -> None:
    backbone = tiny("clip")
    one = attach(backbone, AdaptFormerConfig(r=4, dropout=0.0), name="one")
    train(backbone, one)
    pixels, _ = batch(backbone)
    with torch.no_grad():
        alone = backbone.encode_image(pixels)
        detach(backbone, "one")
        frozen = backbone.encode_image(pixels)
        backbone.adapters["one"] = one
        one.active = False
        with mixed(backbone, [one, None, one]):
            found = backbone.encode_image(pixels)
    torch.testing.assert_close(found[::2], alone[::2])
    torch.testing.assert_close(found[1], frozen[1])
    assert not torch.allclose(found[0], frozen[0])


def test_parallel_insertions_stand_where_the_input_is_known() -> None:
    backbone = tiny("clip")
    place = site(backbone, "vision.0.attention")
    module = ParallelBottleneck(place.width, 2, scale=1.0)
    with pytest.raises(UserError, match=r"in parallel to vision.0.attention"):
        check_plan(backbone, [Insertion(place, module, parallel=True)], "toy")


@pytest.mark.parametrize(
    "build",
    [
        lambda: AdaptFormerConfig(r=0),
        lambda: AdaptFormerConfig(scale=0.0),
        lambda: AdaptFormerConfig(dropout=1.0),
        lambda: AttentionAdapterConfig(r=0),
        lambda: AttentionAdapterConfig(dropout=-0.1),
        lambda: AttentionAdapterConfig(init_std=float("nan")),
    ],
)
def test_impossible_options_are_errors(build) -> None:
    with pytest.raises(UserError):
        build()
