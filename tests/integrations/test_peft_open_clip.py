"""PEFT on open_clip: queries, keys, values and output of its packed attention are all reached."""

from __future__ import annotations

import pytest
import torch
from tests.adapting import batch, features, loss, same, snapshot

from crossadapt.adapters.attach import attach, detach, set_strength
from crossadapt.backbones import tiny

pytest.importorskip("peft")
pytest.importorskip("ftfy", reason="open_clip is not installed")

from crossadapt.integrations.peft import PeftLoraConfig, rank_for_budget
from crossadapt.integrations.peft.configs import PROJECTIONS
from crossadapt.integrations.peft.methods import packed_paths, target_layers
from crossadapt.layers.packed_attention import PARTS, UnpackedAttention

EVERY = PeftLoraConfig(r=2, alpha=4, dropout=0.0, target=PROJECTIONS)
LAYERS = {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"}


@pytest.fixture
def backbone():
    return tiny("open_clip", vision_layers=1, text_layers=2, seed=1)


def factors(adapter, part: str) -> dict[str, torch.Tensor]:
    return {n: p for n, p in adapter.trained().items() if f".{part}." in n}


def scramble(parameters) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)


def test_every_part_of_every_block_is_a_target(backbone) -> None:
    paths = target_layers(backbone, EVERY)
    assert len(paths) == 3 * len(LAYERS)
    assert {path.rpartition(".")[2] for path in paths} == LAYERS
    assert len(packed_paths(backbone)) == 3
    text = target_layers(backbone, PeftLoraConfig(towers="text"))
    assert all(path.startswith("text.transformer.resblocks.") for path in text)


@pytest.mark.parametrize("part", [*PARTS, "out_proj"])
def test_gradients_arrive_and_outputs_change(backbone, part) -> None:
    before, values = features(backbone), snapshot(backbone)
    adapter = attach(backbone, EVERY)
    mine = factors(adapter, part)
    assert len(mine) == 3 * 2  # blocks of both towers, factors A and B
    for old, new in zip(before, features(backbone), strict=True):
        torch.testing.assert_close(new, old, atol=1e-6, rtol=0)  # B starts at zero
    loss(backbone).backward()
    for name, parameter in mine.items():
        # While B is zero no gradient can reach A.
        assert parameter.grad.any() == ("lora_B" in name), name
    scramble(mine.values())
    for old, new in zip(before, features(backbone), strict=True):
        assert not torch.allclose(old, new, atol=1e-4)
    adapter.zero_grad()
    loss(backbone).backward()
    assert all(parameter.grad.any() for parameter in mine.values())
    assert all(p.grad is None for p in backbone.model.parameters())
    detach(backbone)
    assert same(features(backbone), before)
    assert same(snapshot(backbone), values)


def test_the_update_is_that_of_the_packed_weight(backbone) -> None:
    """W + (alpha / r) B A, written by hand into the rows of a second model's packed weights."""
    adapter = attach(backbone, EVERY)
    scramble(adapter.trained().values())
    adapter.eval()
    merged = tiny("open_clip", vision_layers=1, text_layers=2, seed=1)
    trained = {n: p.detach() for n, p in adapter.trained().items()}
    with torch.no_grad():
        for name in [n for n in trained if "lora_A" in n]:
            path = name.removesuffix(".lora_A.weight")
            delta = 2.0 * trained[name.replace("lora_A", "lora_B")] @ trained[name]
            block, _, part = path.rpartition(".")
            module = merged.model.get_submodule(block)
            if part in PARTS:
                rows = module.in_proj_weight.chunk(3)[PARTS.index(part)]
                rows.add_(delta)
            else:
                module.get_submodule(part).weight.add_(delta)
    torch.testing.assert_close(features(backbone), features(merged), atol=1e-5, rtol=1e-5)


def test_strength_moves_the_packed_parts_too(backbone) -> None:
    frozen = features(backbone)
    adapter = attach(backbone, PeftLoraConfig(r=2, dropout=0.0, target=("q_proj", "v_proj")))
    scramble(adapter.trained().values())
    tuned = features(backbone)
    set_strength(backbone, 0.5)
    assert not same(features(backbone), tuned)
    set_strength(backbone, 0.0)
    assert same(features(backbone), frozen)


def test_unpacked_attention_equals_the_packed_one_and_shares_its_tensors(backbone) -> None:
    for path, mask in (
        ("visual.transformer.resblocks.0.attn", None),
        ("text.transformer.resblocks.1.attn", torch.full((5, 5), float("-inf")).triu(1)),
    ):
        packed = backbone.model.get_submodule(path)
        unpacked = UnpackedAttention(packed)
        x = torch.randn(2, 5, packed.embed_dim)
        expected, _ = packed(x, x, x, need_weights=False, attn_mask=mask)
        torch.testing.assert_close(unpacked(x, x, x, attn_mask=mask)[0], expected)
        if mask is not None:
            per_head = mask.expand(2 * packed.num_heads, 5, 5)
            torch.testing.assert_close(unpacked(x, x, x, attn_mask=per_head)[0], expected)
        assert dict(unpacked.named_parameters()).keys() == dict(packed.named_parameters()).keys()
        assert all(p is packed.get_parameter(n) for n, p in unpacked.named_parameters())
        with torch.no_grad():
            packed.in_proj_weight[: packed.embed_dim].zero_()
        assert not unpacked.q_proj.weight.any()
        assert unpacked.k_proj.weight.any()


def test_a_budget_counts_the_parts(backbone) -> None:
    # One rank of q, k and v: 3 (24 + 24) in one vision block, 3 (16 + 16) in each of two.
    assert rank_for_budget(backbone, "lora", 9 * (144 + 192)) == 9
    rank = rank_for_budget(backbone, "lora", 10_000, config=EVERY)
    adapter = attach(backbone, PeftLoraConfig(r=rank, target=PROJECTIONS))
    assert abs(adapter.count() - 10_000) < adapter.count() / rank


def test_bfloat16_weights_and_autocast() -> None:
    backbone = tiny("open_clip", vision_layers=1, text_layers=1).to(torch.bfloat16)
    attach(backbone, EVERY)
    pixels, tokens = batch(backbone)
    assert backbone.encode_image(pixels).dtype == torch.bfloat16
    assert backbone.encode_text(tokens.ids).isfinite().all()
