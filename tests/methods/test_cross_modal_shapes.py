"""The Cross-Modal Adapter on unequal towers, in its place in the block, in half precision."""

from __future__ import annotations

import pytest
import torch
from tests.adapting import batch, features, loss, same, train

from crossadapt.adapters.attach import attach, detach
from crossadapt.backbones import tiny
from crossadapt.layers.bottleneck import quick_gelu
from crossadapt.methods.cross_modal_adapter import CrossModalAdapterConfig, partner_index


@pytest.fixture
def backbone():
    return tiny("clip", vision_layers=2, text_layers=2)


def formula(depth: int, wide: int, narrow: int, r: int, d_s: int) -> int:
    return 2 * depth * (r * (2 * (wide + narrow) - d_s + 2) + wide + narrow - d_s)


def test_pairs_of_layers() -> None:
    def pairs(depth, other, rule):
        return [partner_index(i, depth, other, rule) for i in range(depth)]

    for rule in ("last", "relative"):
        assert pairs(3, 3, rule) == [0, 1, 2]
        assert pairs(2, 5, rule) == [0, 1]
    assert pairs(5, 2, "last") == [None, None, None, 0, 1]
    assert pairs(6, 3, "relative") == [0, 0, 1, 1, 2, 2]
    assert pairs(5, 2, "relative") == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(("vision", "text"), [(2, 5), (5, 2)])
def test_unequal_depths(vision: int, text: int) -> None:
    backbone = tiny("clip", vision_layers=vision, text_layers=text)
    r, d_s = 4, 6
    deep, width = ("text", 16) if text > vision else ("vision", 24)
    last = attach(backbone, CrossModalAdapterConfig(r=r, d_s=d_s), name="last")
    assert [last.insertions[f"{deep}_{i}_mlp"].shared is None for i in range(5)] == [True] * 3 + [
        False
    ] * 2
    assert last.count() == formula(2, 24, 16, r, d_s) + 6 * ((2 * width + 1) * r + width)
    config = CrossModalAdapterConfig(r=r, d_s=d_s, depth_map="relative")
    relative = attach(backbone, config, name="relative")
    parts = [relative.insertions[f"{deep}_{i}_mlp"].shared for i in range(5)]
    assert parts[0] is parts[1] is parts[2]
    assert parts[3] is parts[4]
    assert parts[0] is not parts[3]
    assert sum(".shared." in n for n in relative.trained()) == 2 * 2 * 2
    train(backbone, relative)


def test_insertion_stands_between_sublayer_and_residual(backbone) -> None:
    """h = x + A(attention(norm(x))), checked on the real block of the vision tower."""
    adapter = attach(backbone, CrossModalAdapterConfig(r=4, d_s=6))
    block = backbone.model.vision_model.encoder.layers[0]
    seen = {}
    handle = block.register_forward_hook(
        lambda module, args, out: seen.update(x=args[0], out=out), always_call=True
    )
    features(backbone)
    handle.remove()
    detach(backbone)
    x = seen["x"]
    with torch.no_grad():
        attention = block.self_attn(hidden_states=block.layer_norm1(x), attention_mask=None)[0]
        h = x + adapter.insertions["vision_0_attention"](attention)
        out = h + adapter.insertions["vision_0_mlp"](block.mlp(block.layer_norm2(h)))
    found = seen["out"][0] if isinstance(seen["out"], tuple) else seen["out"]
    torch.testing.assert_close(found, out)


def test_dropout_acts_only_in_training(backbone) -> None:
    adapter = attach(backbone, CrossModalAdapterConfig(r=4, d_s=6, dropout=0.5, init_std=1.0))
    assert not same(features(backbone), features(backbone))
    adapter.eval()
    assert same(features(backbone), features(backbone))


def test_quick_gelu() -> None:
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))


def test_bfloat16_backbone_without_autocast() -> None:
    backbone = tiny("clip", vision_layers=2, text_layers=2)
    adapter = attach(backbone, CrossModalAdapterConfig(r=4, d_s=6))
    train(backbone, adapter)
    exact = features(backbone)
    backbone.model.to(torch.bfloat16)
    pixels, _ = batch(backbone)
    image = backbone.encode_image(pixels.bfloat16())
    assert image.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in adapter.trained().values())
    cosine = torch.nn.functional.cosine_similarity(image.float(), exact[0])
    assert float(cosine.detach().min()) > 0.99
    image.float().sum().backward()
    assert adapter.trained()["vision.0.mlp.down.weight"].grad.any()


def test_autocast_gradients_are_close_to_exact_ones(backbone) -> None:
    adapter = attach(backbone, CrossModalAdapterConfig(r=4, d_s=6, init_std=0.1))
    loss(backbone).backward()
    exact = {n: p.grad.clone() for n, p in adapter.trained().items()}
    adapter.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(backbone)
    total.backward()
    a = torch.cat([g.flatten() for g in exact.values()])
    b = torch.cat([p.grad.flatten() for p in adapter.trained().values()])
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) > 0.98
