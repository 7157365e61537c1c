"""Prompt tokens in a tower: where they stand, what they leave alone, and what they cost."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from tests.adapting import attach_prompts, batch, features, hooks, same, train
from torch import nn

from crossadapt.adapters.attach import attach, detach, set_strength
from crossadapt.adapters.dial import at_strength, dialled
from crossadapt.adapters.plan import Prompts
from crossadapt.adapters.summary import summarise
from crossadapt.adapters.validate import check_plan
from crossadapt.backbones import load, tiny
from crossadapt.errors import UserError
from crossadapt.layers.prompts import PromptBank
from crossadapt.layers.token_drop import dropping
from crossadapt.methods.coop import CoOpConfig
from crossadapt.methods.vpt import VPTConfig, patch_values
from crossadapt.tasks.encode import training_features


@pytest.fixture(scope="module")
def vit_b_32():
    return load("config:clip-vit-base-patch32", weights=False)


@pytest.mark.parametrize(
    ("config", "count", "published"),
    [
        (CoOpConfig(tokens=4), 2_048, 0.002),
        (CoOpConfig(tokens=16), 8_192, 0.008),
        (CoOpConfig(tokens=64), 32_768, 0.033),
        (VPTConfig(tokens=5), 46_080, 0.05),
        (VPTConfig(tokens=20), 184_320, 0.18),
        (VPTConfig(tokens=40), 368_640, 0.37),
        (VPTConfig(tokens=80), 737_280, None),  # published 0.73M, cut and not rounded
        (VPTConfig(tokens=5, deep=False), 3_840, None),
    ],
)
def test_counts_of_the_published_rows(vit_b_32, config, count, published) -> None:
    summary = summarise(vit_b_32, config)
    assert summary.trainable == count
    if published is not None:
        digits = 3 if published < 0.04 else 2
        assert round(count / 1e6, digits) == published


def text_by_hand(backbone, ids, prompts, start):
    """Features of texts from embeddings put together here; ids hold no placeholders."""
    tower = backbone.model.text_model
    table = tower.embeddings.token_embedding(ids)
    rows = prompts[0].expand(len(ids), -1, -1)
    x = torch.cat([table[:, :start], rows, table[:, start:]], 1)
    length, count = x.shape[1], rows.shape[1]
    x = x + tower.embeddings.position_embedding.weight[:length]
    mask = None
    if backbone.family == "clip":
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    for layer, block in enumerate(tower.encoder.layers):
        if 0 < layer < len(prompts):
            x = torch.cat(
                [x[:, :start], prompts[layer].expand(len(x), -1, -1), x[:, start + count :]], 1
            )
        x = block(x, mask)
    x = tower.final_layer_norm(x)
    if backbone.family == "clip":
        ends = count + (ids == tower.eos_token_id).int().argmax(1)
        return backbone.model.text_projection(x[torch.arange(len(x)), ends])
    return tower.head(x[:, -1])


@pytest.mark.parametrize(("family", "depth"), [("clip", 1), ("clip", 3), ("siglip", 2)])
def test_text_prompts_equal_embeddings_put_together_by_hand(family, depth) -> None:
    backbone = tiny(family)
    backbone.use_attention("eager")
    adapter = attach_prompts(backbone, "text", count=4, depth=depth)
    tokens = backbone.tokenize(["a red door", "two boats"])
    start = 1 if family == "clip" else 0
    ids = tokens.ids if family == "clip" else tokens.ids[:, : backbone.tokens("text") - 4]
    with torch.no_grad():
        prompts = [adapter.prompts["text"](layer) for layer in range(depth)]
        found = backbone.encode_text(tokens.ids, tokens.mask)
        detach(backbone)
        wanted = text_by_hand(backbone, ids, prompts, start)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "depth"), [("clip", 1), ("clip", 2), ("siglip", 2)])
def test_vision_prompts_equal_tokens_put_behind_the_class_token(family, depth) -> None:
    """VPT puts them there; at the end they must give the same, as nothing tells places apart."""
    backbone = tiny(family)
    backbone.use_attention("eager")
    adapter = attach_prompts(backbone, "vision", count=3, depth=depth)
    pixels, _ = batch(backbone)
    first = int(family == "clip")
    with torch.no_grad():
        prompts = [adapter.prompts["vision"](i).expand(len(pixels), -1, -1) for i in range(depth)]
        found = backbone.encode_image(pixels)
        detach(backbone)
        tower = backbone.model.vision_model
        x = tower.embeddings(pixels)
        x = torch.cat([x[:, :first], prompts[0], x[:, first:]], 1)
        x = tower.pre_layrnorm(x) if family == "clip" else x
        for layer, block in enumerate(tower.encoder.layers):
            if 0 < layer < depth:
                x = torch.cat([x[:, :first], prompts[layer], x[:, first + 3 :]], 1)
            x = block(x, None)
        if family == "clip":
            wanted = backbone.model.visual_projection(tower.post_layernorm(x[:, 0]))
        else:  # the pooling head looks at patches, not at prompts
            wanted = tower.head(tower.post_layernorm(x[:, 3:]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_fused_attention_gives_the_same(family) -> None:
    backbone = tiny(family)
    attach_prompts(backbone, "text", count=3, depth=2)
    backbone.use_attention("eager")
    eager = features(backbone)
    backbone.use_attention("sdpa")
    for a, b in zip(eager, features(backbone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def lengths(backbone, run) -> list[int]:
    """Sequence length at the input of every vision block while `run` runs."""
    seen: list[int] = []
    blocks = backbone.model.vision_model.encoder.layers
    handles = [
        b.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1])) for b in blocks
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_vision_sequence_is_constant_and_token_drop_spares_prompts(family) -> None:
    backbone = tiny(family, vision_layers=3)
    attach_prompts(backbone, "vision", count=3, depth=2)
    pixels, _ = batch(backbone)
    patches, prefix = 16, int(family == "clip")
    found = lengths(backbone, lambda: backbone.encode_image(pixels))
    assert found == [prefix + patches + 3] * 3
    raw = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    found = lengths(backbone, lambda: training_features(backbone, raw, 0.5))
    assert found == [prefix + patches // 2 + 3] * 3


def test_dropped_tokens_are_never_prompts() -> None:
    backbone = tiny("clip")
    adapter = attach_prompts(backbone, "vision", count=3, depth=1)
    tower, seen = backbone.model.vision_model, []
    handle = tower.pre_layrnorm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with dropping(tower.embeddings, 0.9), torch.no_grad():
        backbone.encode_image(batch(backbone)[0])
    handle.remove()
    assert torch.equal(seen[0][1, -3:], adapter.prompts["vision"](0))


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_half_strength_is_half_way_between_the_features(family, tower) -> None:
    backbone = tiny(family)
    frozen = features(backbone)
    train(backbone, attach_prompts(backbone, tower, count=3, depth=2))
    full = features(backbone)
    set_strength(backbone, 0.25)
    for found, a, b in zip(features(backbone), frozen, full, strict=True):
        torch.testing.assert_close(found, a + 0.25 * (b - a))


def test_the_dial_of_one_thread_is_not_that_of_another() -> None:
    adapter, seen = attach_prompts(tiny("clip"), "text", 2, 1), []
    with at_strength(0.5):
        thread = threading.Thread(target=lambda: seen.append(dialled(adapter)))
        thread.start()
        thread.join()
        seen.append(dialled(adapter))
    assert seen == [1.0, 0.5]


def test_a_deep_copy_has_prompts_of_its_own() -> None:
    backbone = tiny("clip")
    attach(backbone, VPTConfig(tokens=2))
    attach_prompts(backbone, "text", 2, 1, name="text")
    twin = copy.deepcopy(backbone)
    before = features(backbone)
    assert same(features(twin), before)
    train(twin, twin.adapters["text"])
    assert same(features(backbone), before)
    assert not same(features(twin), before)


def test_prompts_leave_no_trace_when_detached() -> None:
    backbone = tiny("clip")
    count, before = hooks(backbone), features(backbone)
    attach_prompts(backbone, "vision", 2, 2)
    assert hooks(backbone) == count + 3
    detach(backbone)
    assert hooks(backbone) == count
    assert backbone.prompting is None
    assert same(features(backbone), before)


def test_frames_see_the_same_prompts_as_pictures() -> None:
    backbone = tiny("clip")
    train(backbone, attach(backbone, VPTConfig(tokens=2)))
    pixels, _ = batch(backbone)
    mask = torch.tensor([[True, True, False]])
    with torch.no_grad():
        frames = backbone.encode_frames(pixels[None], mask)
        torch.testing.assert_close(frames[0, :2], backbone.encode_image(pixels[:2]))
    assert not frames[0, 2].any()


def test_coop_leaves_pictures_and_vpt_texts_bit_identical() -> None:
    backbone = tiny("siglip")
    images, texts = features(backbone)
    train(backbone, attach(backbone, CoOpConfig(tokens=3), name="coop"))
    found = features(backbone)
    assert torch.equal(found[0], images)
    assert not torch.allclose(found[1], texts)
    train(backbone, attach(backbone, VPTConfig(tokens=3), name="vpt"))
    found = features(backbone)
    assert torch.equal(found[1], texts)
    assert not torch.allclose(found[0], images)


def test_starts() -> None:
    backbone = tiny("clip")
    table = backbone.model.text_model.embeddings.token_embedding.weight
    ids = backbone.tokenize.tokenizer("a red door", add_special_tokens=False)["input_ids"]
    adapter = attach(backbone, CoOpConfig(tokens=2, words="a red door"), name="words")
    assert torch.equal(adapter.prompts["text"](0), table[ids[:2]])
    with pytest.raises(UserError, match="40 are to start from them"):
        attach(backbone, CoOpConfig(tokens=40, words="a"), name="more")
    assert patch_values(backbone) == 3 * 8 * 8
    bound = (6 / (3 * 8 * 8 + 24)) ** 0.5
    deep = attach(backbone, VPTConfig(tokens=40), name="vpt").prompts["vision"](1)
    assert 0.95 * bound < deep.abs().max() <= bound


class Wrong(nn.Module):
    def forward(self, layer):
        return torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Prompts("fusion", 2, 1, PromptBank(1, 2, 16)), "'fusion' tower"),
        (Prompts("text", 2, 4, PromptBank(4, 2, 16)), "4 layers deep, the tower has 3"),
        (Prompts("text", 30, 1, PromptBank(1, 30, 16)), "30 prompt tokens"),
        (Prompts("vision", 0, 1, PromptBank(1, 0, 24)), "0 prompt tokens"),
        (Prompts("vision", 2, 1, Wrong()), r"for layer 0 are \(2, 5\)"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(item, message) -> None:
    with pytest.raises(UserError, match=message):
        check_plan(tiny("clip"), [item], "toy")


@pytest.mark.parametrize("build", [lambda: CoOpConfig(tokens=0), lambda: VPTConfig(tokens=0)])
def test_impossible_options_are_errors(build) -> None:
    with pytest.raises(UserError):
        build()
