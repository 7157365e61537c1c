"""MV-Adapter: the published counts, and every invariant of time, tying and merging.

Its frame sampling is tested with the others in `tests/data/test_frame_choice.py`. The count of the
released ActivityNet settings (3,445,472) is not: its layer norm in front is no option here, because
the published share excludes it.
"""

from __future__ import annotations

import pytest
import torch
from tests.adapting import CMA, batch, features, loss, same, snapshot, train

from crossadapt.adapters.attach import activate, attach, detach
from crossadapt.adapters.folder import load_adapter, save_adapter
from crossadapt.adapters.merge import merge
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import load, tiny
from crossadapt.errors import UserError
from crossadapt.layers.bottleneck import quick_gelu
from crossadapt.layers.temporal import TemporalCalibration, clips
from crossadapt.methods.mv_adapter import MVAdapterConfig, TextBranch, VisionBranch, merge_ties
from crossadapt.training.config import make_recipe
from crossadapt.training.optimisers import make_optimiser, set_learning_rate

SMALL = MVAdapterConfig(d=8, frames=4, tied=1, shrink=1)
PUBLISHED = [
    # set, frames, words, tied, position, adapters, with biases, published %
    ("MSR-VTT", 12, 32, 2, "down-in", 3_401_728, 3_572_736, 2.39),
    ("MSVD", 12, 32, 2, "down-in", 3_401_728, 3_572_736, 2.39),
    ("LSMDC", 12, 32, 3, "down-in", 3_444_000, 3_615_008, 2.42),
    ("DiDeMo", 32, 64, 2, "down-in", 3_457_024, 3_628_032, 2.42),
    ("ActivityNet", 32, 64, 1, "down-in", 3_414_752, 3_585_760, 2.40),
    ("MSR-VTT, released settings", 12, 32, 2, "down-out", 3_325_696, 3_496_704, None),
    ("DiDeMo, released settings", 32, 64, 2, "down-out", 3_380_992, 3_552_000, None),
]


@pytest.fixture(scope="module")
def vit_b_16():
    return load("config:clip-vit-base-patch16", weights=False)


@pytest.fixture(params=["clip", "siglip"])
def backbone(request):
    return tiny(request.param, vision_layers=2, text_layers=3, seed=1)


def video(backbone, count: int = 2, frames: int = 4):
    """Clips of noise (count, frames, 3, H, W), all frames there."""
    random = torch.Generator().manual_seed(3)
    pixels = torch.randn(count, frames, 3, *backbone.preprocess.size, generator=random)
    return pixels, torch.ones(count, frames, dtype=torch.bool)


def encode(backbone, pixels, mask):
    with torch.no_grad():
        return backbone.encode_frames(pixels, mask)


def trained(backbone, config=SMALL, steps: int = 3):
    adapter = attach(backbone, config)
    train(backbone, adapter, steps=steps, rate=0.1)
    return adapter


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row[0])
def test_published_counts(vit_b_16, row) -> None:
    _, frames, words, tied, position, adapters, with_biases, published = row
    config = MVAdapterConfig(frames=frames, words=words, tied=tied, position=position)
    assert summarise(vit_b_16, config).trainable == adapters
    full = MVAdapterConfig(frames=frames, words=words, tied=tied, position=position, bias_lr=0.02)
    summary = summarise(vit_b_16, full)
    assert summary.trainable == with_biases
    assert with_biases - adapters == 171_008
    total = sum(p.numel() for p in vit_b_16.model.parameters())
    assert total == 149_620_737
    if published is not None:
        # The published 2.42 of DiDeMo is 2.425 before rounding.
        assert abs(100 * with_biases / total - published) <= 0.005


def test_counts_of_the_parts(vit_b_16) -> None:
    config = MVAdapterConfig(words=32, tied=0)
    sizes = {s.name: s.trainable for s in summarise(vit_b_16, config).sites}
    assert len(sizes) == 24
    assert sizes["vision.3.mlp"] == 158_160
    assert sizes["text.3.mlp"] == 118_272
    untied = sum(sizes.values())
    ties = {
        position: summarise(vit_b_16, MVAdapterConfig(words=32, position=position)).trainable
        for position in ("down-in", "down-out")
    }
    assert {k: v - untied for k, v in ties.items()} == {"down-in": 84_544, "down-out": 8_512}
    wide = {s.name: s for s in summarise(vit_b_16, MVAdapterConfig(words=64, frames=32)).sites}
    assert wide["text.0.mlp"].trainable == 120_320
    assert wide["vision.0.mlp"].trainable == 160_720


@pytest.mark.parametrize("position", ["down-in", "down-out"])
def test_a_new_adapter_is_the_frozen_model_bit_for_bit(backbone, position) -> None:
    pixels, mask = video(backbone)
    mask[0, 2:] = False
    before, frames = features(backbone), encode(backbone, pixels, mask)
    attach(backbone, MVAdapterConfig(d=8, frames=4, tied=2, position=position, bias_lr=0.02))
    assert same(features(backbone), before)
    assert torch.equal(encode(backbone, pixels, mask), frames)


def test_the_factor_is_one_object_in_both_towers_counted_from_the_end() -> None:
    backbone = tiny("clip", vision_layers=2, text_layers=3)
    adapter = attach(backbone, MVAdapterConfig(d=8, tied=2, shrink=1))
    at = adapter.insertions
    assert at["vision_1_mlp"].tie.factor.values is at["text_2_mlp"].tie.factor.values
    assert at["vision_0_mlp"].tie.factor.values is at["text_1_mlp"].tie.factor.values
    assert at["vision_0_mlp"].tie.factor is not at["vision_1_mlp"].tie.factor
    assert at["text_0_mlp"].tie is None
    # Zero factors: the scaling is the projection's bias, small and random, as published.
    assert torch.equal(at["text_2_mlp"].tie(), at["text_2_mlp"].tie.project.bias)
    detach(backbone)
    one = attach(backbone, MVAdapterConfig(d=8, tied=1, shrink=1, tie_start="one"))
    assert bool((one.insertions["text_2_mlp"].tie() == 1).all())


def test_down_in_scales_inputs_and_down_out_scales_outputs() -> None:
    y = torch.randn(2, 5, 16)
    for position in ("down-in", "down-out"):
        backbone = tiny("clip", text_width=16)
        config = MVAdapterConfig(d=8, tied=1, shrink=1, position=position)
        branch = attach(backbone, config).insertions["text_2_mlp"]
        with torch.no_grad():
            branch.tie.factor.values.normal_()
            branch.down.bias.normal_()
            beta, plain = branch.tie(), branch.down.weight
            if position == "down-in":
                wanted = (y * beta) @ plain.T + branch.down.bias
            else:
                wanted = (y @ plain.T) * beta + branch.down.bias
            torch.testing.assert_close(branch.reduce(y), wanted)


@pytest.mark.parametrize("position", ["down-in", "down-out"])
def test_merged_ties_equal_unmerged_ones(backbone, position, tmp_path) -> None:
    config = MVAdapterConfig(d=8, frames=4, tied=2, shrink=1, position=position, bias_lr=0.1)
    adapter = trained(backbone, config)
    pixels, mask = video(backbone)
    expected, frames = features(backbone), encode(backbone, pixels, mask)
    merged = merge_ties(backbone)
    assert merged.active
    assert merged.config.tied == 0
    assert merged.count() < adapter.count()
    assert not any("tie" in name for name in merged.trained())
    found = (*features(backbone), encode(backbone, pixels, mask))
    for a, b in zip(found, (*expected, frames), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    save_adapter(backbone, "merged", tmp_path / "m")
    detach(backbone, "merged")
    load_adapter(backbone, tmp_path / "m", name="again")
    torch.testing.assert_close(features(backbone)[0], expected[0], rtol=1e-5, atol=1e-6)
    activate(backbone, "default")
    assert same(features(backbone), expected)


def test_the_gate_starts_at_one() -> None:
    torch.manual_seed(0)
    time = TemporalCalibration(8, 4, 2, 2, outer=16)
    frames, patches = torch.randn(2, 2, 4, 8)
    mask = torch.ones(2, 4, dtype=torch.bool)
    before = time(frames, patches, mask)
    torch.nn.init.normal_(time.squeeze.weight)
    assert torch.equal(time(frames, patches, mask), before)  # the gain does not reach it yet
    torch.nn.init.normal_(time.expand.weight)
    assert not torch.allclose(time(frames, patches, mask), before)


def test_without_a_gain_the_class_token_takes_the_plain_up_projection() -> None:
    """FC2 = 0 makes alpha 1: what is projected up is the token that the transformer gave."""
    torch.manual_seed(0)
    branch = VisionBranch(16, SMALL, None, class_token=True)
    torch.nn.init.normal_(branch.up.weight)
    given: list[torch.Tensor] = []
    branch.time.transformer.register_forward_hook(lambda m, args, out: given.append(out))
    y, mask = torch.randn(4, 5, 16), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad(), clips(mask):
        plain = branch(y)[:, 0]
        wanted = y[:, 0] + branch.scale * branch.up(quick_gelu(given[0][0, 1:5]))
        torch.testing.assert_close(plain, wanted)
        torch.nn.init.normal_(branch.time.expand.weight)
        assert not torch.allclose(branch(y)[:, 0], wanted, atol=1e-3)


def test_the_branch_itself_is_not_affine_and_is_not_merged(backbone) -> None:
    branch = TextBranch(16, SMALL, None, words=7, causal=True)
    torch.nn.init.normal_(branch.up.weight)
    a, b = torch.randn(2, 1, 7, 16)
    with torch.no_grad():
        apart = branch(a) + branch(b) - branch(torch.zeros_like(a))
        assert (branch(a + b) - apart).abs().max() > 1e-3
    attach(backbone, SMALL)
    with pytest.raises(UserError, match="mv-adapter cannot be merged"):
        merge(backbone)


def test_masked_frames_change_nothing(backbone) -> None:
    trained(backbone)
    pixels, mask = video(backbone)
    mask[0, 2:] = False
    found = encode(backbone, pixels, mask)
    other = pixels.clone()
    other[0, 2:] = 9.0
    assert torch.equal(encode(backbone, other, mask), found)
    assert found[0, 2:].abs().max() == 0
    short = encode(backbone, pixels[:1, :2], mask[:1, :2])
    torch.testing.assert_close(found[:1, :2], short, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [True, False])
def test_the_calibration_itself_ignores_what_is_masked(classes) -> None:
    time = TemporalCalibration(8, 4, 2, 2, outer=16, classes=classes)
    torch.nn.init.normal_(time.expand.weight)
    frames, patches = torch.randn(2, 2, 4, 8)
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 1] = False
    first = frames if classes else None
    found = time(first, patches, mask)
    patches, frames = patches.clone(), frames.clone()
    patches[1, 1], frames[1, 1] = 50.0, -50.0
    again = time(frames if classes else None, patches, mask)
    assert torch.equal(found[mask], again[mask])


def test_the_order_of_frames_matters(backbone) -> None:
    pixels, mask = video(backbone)
    order = [2, 0, 3, 1]
    attach(backbone, SMALL)
    fresh = encode(backbone, pixels, mask)
    assert torch.allclose(encode(backbone, pixels[:, order], mask), fresh[:, order], atol=1e-5)
    detach(backbone)
    adapter = trained(backbone)
    found, moved = (encode(backbone, p, mask) for p in (pixels, pixels[:, order]))
    assert (moved - found[:, order]).abs().max() > 1e-4
    # Without positions the branch does not know an order.
    with torch.no_grad():
        for name, parameter in adapter.named_trained():
            if name.endswith("time.position"):
                parameter.zero_()
    found, moved = (encode(backbone, p, mask) for p in (pixels, pixels[:, order]))
    torch.testing.assert_close(moved, found[:, order], rtol=1e-4, atol=1e-5)


def test_patches_stay_in_their_frame_and_classes_do_not() -> None:
    torch.manual_seed(0)
    branch = VisionBranch(16, SMALL, None, class_token=True)
    torch.nn.init.normal_(branch.up.weight)
    y = torch.randn(4, 5, 16)
    other = y.clone()
    other[3] += 1
    mask = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad(), clips(mask):
        a, b = branch(y), branch(other)
    torch.testing.assert_close(a[:3, 1:], b[:3, 1:])
    assert (a[:3, 0] - b[:3, 0]).abs().amin(1).max() > 0
    assert (a[0, 0] - b[0, 0]).abs().max() > 1e-5


def test_clips_do_not_see_other_clips(backbone) -> None:
    trained(backbone)
    pixels, mask = video(backbone)
    both = encode(backbone, pixels, mask)
    alone = encode(backbone, pixels[1:], mask[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_a_picture_is_a_clip_of_one_frame(backbone) -> None:
    trained(backbone)
    pixels, _ = batch(backbone)
    with torch.no_grad():
        images = backbone.encode_image(pixels)
    frames = encode(backbone, pixels[:, None], torch.ones(len(pixels), 1, dtype=torch.bool))
    assert torch.equal(frames[:, 0], images)


@pytest.mark.parametrize("causal", [True, False])
def test_words_see_only_the_words_before_them_in_a_causal_tower(causal) -> None:
    torch.manual_seed(0)
    branch = TextBranch(16, SMALL, None, words=7, causal=causal)
    torch.nn.init.normal_(branch.up.weight)
    y = torch.randn(2, 7, 16)
    other = y.clone()
    other[:, 4] += 1
    with torch.no_grad():
        change = (branch(y) - branch(other)).abs().amax((0, 2))
    assert change[4:].min() > 1e-4
    assert (change[:4].max() == 0) == causal


def test_logit_scale_and_weights_stay_and_biases_follow_the_preset(backbone) -> None:
    before = snapshot(backbone)
    names = set(attach(backbone, SMALL).trained())
    assert all(".mlp." in name and "encoder" not in name for name in names)
    detach(backbone)
    adapter = attach(backbone, MVAdapterConfig(d=8, tied=1, shrink=1, bias_lr=0.02))
    originals = {n for n, p in backbone.model.named_parameters() if p.numel() > 1}
    biases = {n for n in originals if "bias" in n.rpartition(".")[2]}
    assert {n for n in adapter.trained() if n in originals} == biases
    assert set(adapter.lr_scales) == biases
    train(backbone, adapter)
    assert same(snapshot(backbone), before)


def test_biases_learn_at_their_share_of_the_rate() -> None:
    backbone = tiny("clip")
    adapter = attach(backbone, MVAdapterConfig(d=8, tied=0, bias_lr=0.02))
    optimiser = make_optimiser(adapter.trained(), make_recipe(lr=1.0), adapter.lr_scales)
    rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    bias = adapter.trained()["text_model.final_layer_norm.bias"]
    up = adapter.trained()["text.0.mlp.up.bias"]
    assert (rates[id(bias)], rates[id(up)]) == (0.02, 1.0)
    set_learning_rate(optimiser, 0.5)
    rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    assert (rates[id(bias)], rates[id(up)]) == (0.01, 0.5)
    assert len(rates) == len(adapter.trained())


def test_limits_of_a_trained_adapter_are_said() -> None:
    backbone = tiny("clip")
    attach(backbone, MVAdapterConfig(d=8, frames=2, words=5, tied=0))
    pixels, mask = video(backbone, frames=3)
    with pytest.raises(UserError, match=r"3 frames .* made for 2"):
        backbone.encode_frames(pixels, mask)
    with pytest.raises(UserError, match="tokens for an mv-adapter made for 5"):
        loss(backbone)


@pytest.mark.parametrize(
    "options",
    [{"d": 0}, {"heads": 3}, {"shrink": 5}, {"tied": -1}, {"words": 0}, {"frames": 0},
     {"bias_lr": 1.5}, {"bias_lr": -1}, {"position": "up-in"}, {"tie_start": "zero"}],
    ids=str,
)  # fmt: skip
def test_impossible_options_are_errors(options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        MVAdapterConfig(**options)


def test_what_a_plan_refuses() -> None:
    with pytest.raises(UserError, match="shallower tower has 2"):
        attach(tiny("clip"), MVAdapterConfig(tied=3))
    with pytest.raises(UserError, match="reads 32 tokens"):
        attach(tiny("clip"), MVAdapterConfig(words=33))
    backbone = tiny("clip")
    attach(backbone, CMA)
    with pytest.raises(UserError, match="no ties to merge"):
        merge_ties(backbone)
