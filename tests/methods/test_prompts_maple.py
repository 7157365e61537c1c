"""MaPLe: published counts, coupling, and which layers see which prompts."""

from __future__ import annotations

import pytest
import torch
from tests.adapting import batch, loss, train

from crossadapt.adapters.attach import attach
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import load, tiny
from crossadapt.errors import UserError
from crossadapt.methods.maple import MaPLeConfig


@pytest.fixture(scope="module")
def vit_b_16():
    return load("config:clip-vit-base-patch16", weights=False)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (MaPLeConfig(), 3_555_072),
        (MaPLeConfig(tokens=2, depth=9), 3_555_072),
        (MaPLeConfig(depth=3), 1_185_024),
        # "MaPLe" of the core paper's tables, all 12 layers: 4.76M, 4.85M, 4.97M.
        (MaPLeConfig(tokens=5, depth=12), 4_758_528),
        (MaPLeConfig(tokens=20, depth=12), 4_850_688),
        (MaPLeConfig(tokens=40, depth=12), 4_973_568),
        # "VL-Prompt" of the same tables: 0.08M, 0.31M, 0.61M; 74 is what 77 positions hold.
        (MaPLeConfig(tokens=5, depth=12, coupled=False), 76_800),
        (MaPLeConfig(tokens=20, depth=12, coupled=False), 307_200),
        (MaPLeConfig(tokens=40, depth=12, coupled=False), 614_400),
        (MaPLeConfig(tokens=74, depth=12, coupled=False), 1_136_640),
    ],
)
def test_counts(vit_b_16, config, count: int) -> None:
    assert summarise(vit_b_16, config).trainable == count


def test_share_without_the_token_embedding_is_the_published_one(vit_b_16) -> None:
    """2.86 % only comes out when the token embedding's 25,296,896 values are left out."""
    total = sum(p.numel() for p in vit_b_16.model.parameters())
    assert total == 149_620_737
    assert round(100 * 3_555_072 / (total - 25_296_896), 2) == 2.86


def small(family: str = "clip", depth: int = 3, **changes):
    backbone = tiny(
        family, vision_layers=4, text_layers=4, vision_width=12, text_width=8, projection_dim=16
    )
    return backbone, attach(backbone, MaPLeConfig(depth=depth, **changes))


def test_count_of_the_tiny_model() -> None:
    assert small()[1].count() == 3 * 2 * 8 + 3 * (8 * 12 + 12) == 372


def test_deeper_maps_start_equal_and_part_after_one_step() -> None:
    backbone, adapter = small()
    first, second, third = adapter.prompts["vision"].maps
    assert torch.equal(second.weight, third.weight)
    assert torch.equal(second.bias, third.bias)
    assert second.weight is not third.weight
    assert not torch.equal(first.weight, second.weight)
    train(backbone, adapter, steps=1)
    assert not torch.equal(second.weight, third.weight)


def test_one_layer_has_no_deep_prompts_and_runs() -> None:
    backbone, adapter = small(depth=1)
    assert list(adapter.trained()) == [
        "text.prompts.tokens.0",
        "vision.prompts.maps.0.weight",
        "vision.prompts.maps.0.bias",
    ]
    train(backbone, adapter)


def test_first_prompts_start_from_the_words() -> None:
    backbone, adapter = small()
    ids = backbone.tokenize.tokenizer("a photo of a", add_special_tokens=False)["input_ids"]
    table = backbone.model.text_model.embeddings.token_embedding.weight
    assert torch.equal(adapter.prompts["text"](0), table[ids[:2]])
    deep = torch.stack([adapter.prompts["text"](layer) for layer in (1, 2)])
    assert 0.01 < float(deep.detach().std()) < 0.03


def inputs_of_blocks(backbone, tower: str):
    """The tensor that enters every block of a tower, for the fixed batch."""
    seen: list[torch.Tensor] = []
    blocks = backbone.model.get_submodule(f"{tower}_model").encoder.layers
    # Before any other hook the block's input would still be the layer below's output.
    handles = [
        b.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone())) for b in blocks
    ]
    pixels, tokens = batch(backbone)
    with torch.no_grad():
        if tower == "vision":
            backbone.encode_image(pixels)
        else:
            backbone.encode_text(tokens.ids, tokens.mask)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_layer_s_prompts_touch_its_input_at_the_prompt_positions_alone(family, tower) -> None:
    backbone, adapter = small(family)
    before = inputs_of_blocks(backbone, tower)
    with torch.no_grad():
        adapter.prompts["text"].tokens[1] += 1.0
    after = inputs_of_blocks(backbone, tower)
    length = before[0].shape[1]
    start = int(family == "clip") if tower == "text" else length - 2
    assert all(x.shape[1] == length for x in before)
    assert torch.equal(before[0], after[0])
    changed = (before[1] != after[1]).any(dim=2).any(dim=0).nonzero().squeeze(1)
    assert changed.tolist() == [start, start + 1]
    # Layer 2 has prompts of its own, so there the change is anywhere but at their positions.
    places = [start, start + 1]
    assert torch.equal(before[2][:, places], after[2][:, places])
    assert not torch.equal(before[2], after[2])
    # Layer 3 has none: what layer 2's prompts have become is carried along.
    with torch.no_grad():
        adapter.prompts["text"].tokens[2] += 1.0
    assert not torch.equal(inputs_of_blocks(backbone, tower)[3][:, places], after[3][:, places])


def test_the_end_of_text_does_not_move_with_the_prompts() -> None:
    """It is found among the ids; prompts that look like end-of-text vectors change nothing."""
    backbone, adapter = small(words="")
    table = backbone.model.text_model.embeddings.token_embedding.weight
    with torch.no_grad():
        adapter.prompts["text"].tokens[0].copy_(table[backbone.tokenize.eos].expand(2, -1))
    ids = backbone.tokenize(["a red door"]).ids
    seen = []
    handle = backbone.model.text_model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    backbone.encode_text(ids)
    handle.remove()
    assert (seen[0] == backbone.tokenize.eos).nonzero()[0, 1] == ids.shape[1] - 1 + 2


def test_text_gradients_come_from_pictures_too_when_coupled() -> None:
    for coupled in (True, False):
        backbone, adapter = small(coupled=coupled)
        backbone.encode_image(batch(backbone)[0]).square().sum().backward()
        grads = [p.grad for p in adapter.prompts["text"].tokens]
        assert all((g is not None and bool(g.any())) == coupled for g in grads)


def test_a_shared_prompt_is_saved_under_the_text_tower() -> None:
    _, adapter = small()
    names = list(adapter.trained())
    assert names[:3] == [f"text.prompts.tokens.{i}" for i in range(3)]
    assert not any(n.startswith("vision.prompts.source") for n in names)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaPLeConfig(tokens=0), "tokens is 0"),
        (lambda: MaPLeConfig(depth=0), "depth is 0"),
        (lambda: attach(tiny("clip"), MaPLeConfig(depth=3)), "the shallower tower has 2"),
    ],
)
def test_impossible_options_are_errors(build, message) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_depth_left_out_is_that_of_the_shallower_tower() -> None:
    backbone = tiny("clip", vision_layers=2, text_layers=3)
    adapter = attach(backbone, MaPLeConfig())
    assert len(adapter.prompts["text"].tokens) == 2
    loss(backbone).backward()
