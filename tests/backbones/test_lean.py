"""Frozen products held in bf16: the same bits as under autocast, half the memory."""

from __future__ import annotations

import pytest
import torch

from crossadapt import CrossModalAdapterConfig, attach, load, set_strength
from crossadapt.adapters.attach import attached
from crossadapt.adapters.registry import make_config
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.lean import hold_products_in_bf16
from crossadapt.backbones.precision import Precision, choose_precision

BF16 = choose_precision("bf16")
FAMILIES = ("tiny:clip", "tiny:siglip", "tiny:blip", "tiny:open_clip")


def outcome(backbone: HFBackbone) -> list[torch.Tensor]:
    """Features of pictures and texts, and all gradients."""
    pixels = torch.rand(3, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    tokens = backbone.tokenize(["a red square", "a blue thing on a boat"])
    with BF16.autocast():
        images = backbone.encode_image(pixels)
    with BF16.autocast():
        texts = backbone.encode_text(tokens.ids, tokens.mask)
    (images.float().pow(2).sum() + texts.float().pow(3).sum()).backward()
    trained = attached(backbone, "default").trained()
    grads = [torch.zeros(0) if p.grad is None else p.grad for p in trained.values()]
    return [images, texts, *grads]


def adapted(source: str, config) -> HFBackbone:
    """A backbone with an adapter that is not the identity."""
    backbone = load(source)
    attach(backbone, config, seed=0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attached(backbone, "default").trained().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    return backbone


@pytest.mark.parametrize("source", FAMILIES)
def test_features_and_gradients_are_the_same_bits(source: str) -> None:
    """With the fingerprint of the float32 weights."""
    config = CrossModalAdapterConfig(r=4, d_s=4)
    plain, lean = adapted(source, config), adapted(source, config)
    assert hold_products_in_bf16(lean, BF16) > 0
    for ours, theirs in zip(outcome(lean), outcome(plain), strict=True):
        assert torch.equal(ours, theirs)
    assert lean.fingerprint == plain.fingerprint


@pytest.mark.parametrize("method", ["projection", "partial"])
def test_originals_of_trained_copies_stay(method: str) -> None:
    """At strength 0.5 copy and original are mixed, so the original must be whole."""
    plain, lean = (adapted("tiny:clip", make_config(method, {})) for _ in range(2))
    copied = attached(lean, "default").copied
    hold_products_in_bf16(lean, BF16, keep=copied)
    held = dict(lean.model.named_parameters())
    assert copied
    assert all(held[name].dtype == torch.float32 for name in copied)
    for backbone in (plain, lean):
        set_strength(backbone, 0.5)
    for ours, theirs in zip(outcome(lean), outcome(plain), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_happens_in_float32() -> None:
    """And what was not meant for it fails loudly."""
    backbone = load("tiny:clip")
    assert hold_products_in_bf16(backbone, Precision("fp32", "asked for", "cpu")) == 0
    assert all(p.dtype == torch.float32 for p in backbone.model.parameters())
    hold_products_in_bf16(backbone, BF16)
    with pytest.raises(RuntimeError):
        backbone.encode_image(torch.zeros(1, 3, 32, 32))
