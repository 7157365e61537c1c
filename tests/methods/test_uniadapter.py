"""UniAdapter: published counts, sharing, the three branches against their formulas."""

from __future__ import annotations

import pytest
import torch
from tests.adapting import batch, features, matching_loss, same, snapshot, train
from torch.nn import functional

import crossadapt
from crossadapt.adapters.attach import attach, detach, set_strength
from crossadapt.adapters.merge import merge
from crossadapt.adapters.mixture import mixed
from crossadapt.adapters.plan import Insertion, Override
from crossadapt.adapters.registry import get_method, make_config
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import tiny
from crossadapt.errors import UserError
from crossadapt.layers.fusion import frame_weights
from crossadapt.methods.uniadapter import UniAdapterConfig

PLAIN = UniAdapterConfig(r=4, heads=False)


def published(r: int, width: int, layers: int) -> int:
    """Down, three ups, two layer norms a layer: the paper's adapters without heads."""
    return layers * ((width * r + r) + 3 * (r * width + width) + 4 * width)


@pytest.fixture
def blip():
    """Towers of one width, so that all of them use the whole shared part."""
    return tiny("blip", vision_width=16, text_width=16, vision_layers=2, text_layers=2)


def fused(backbone) -> torch.Tensor:
    pixels, tokens = batch(backbone)
    with torch.no_grad():
        seen = backbone.encode_image_tokens(pixels)
        return backbone.encode_fusion(tokens.ids, tokens.mask, seen)


# -- counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("r", "adapters"), [(64, 2_424_576), (128, 4_784_640), (512, 18_945_024)])
def test_counts_on_blip_base(r, adapters):
    big = crossadapt.load("config:blip-base-224", weights=False)
    assert summarise(big, UniAdapterConfig(r=r, heads=False)).trainable == adapters
    assert published(r, 768, 12) == adapters
    whole = summarise(big, UniAdapterConfig(r=r))
    assert whole.trainable == adapters + 395_266
    assert sum(whole.per_tower.values()) == whole.trainable
    # 48 D r in the matrices alone.
    assert adapters - 48 * 768 * r == 12 * (r + 7 * 768)


def test_published_shares():
    """2.2 % for r = 128 (with the key and value branch), of encoders of 223,057,152."""
    big = crossadapt.load("config:blip-base-224", weights=False)
    towers = (big.model.vision_model, big.model.text_encoder)
    encoders = sum(p.numel() for tower in towers for p in tower.parameters())
    assert encoders == 223_057_152
    with_branch = summarise(big, UniAdapterConfig(r=128, heads=False, key_value=64))
    assert with_branch.trainable == 4_784_640 + 198_274
    assert round(100 * with_branch.trainable / encoders, 1) == 2.2
    assert round(100 * 2_424_576 / encoders, 2) == 1.09


def test_counts_on_two_towers():
    clip = crossadapt.load("config:clip-vit-base-patch32", weights=False)
    r, vision, text = 128, 768, 512
    shared = vision * r + r + 2 * vision
    expected = 12 * (shared + (r + 1) * vision + (r + 1) * text)
    found = summarise(clip, UniAdapterConfig(r=r, heads=False))
    assert found.trainable == expected
    assert found.per_tower["shared"] == 12 * shared
    heads = summarise(clip, UniAdapterConfig(r=r)).trainable - expected
    assert heads == 768 * 512 + 512 * 512


# -- sharing -----------------------------------------------------------------------------------


def test_a_layer_has_one_shared_part_in_all_towers(blip):
    adapter = attach(blip, PLAIN)
    for layer in range(2):
        roles = [adapter.insertions[f"{t}_{layer}_residual"] for t in ("vision", "text", "fusion")]
        assert len({id(role.shared) for role in roles}) == 1
        assert roles[2].textual is roles[1].up
        assert roles[2].up is not roles[0].up
    assert adapter.count() == published(4, 16, 2)
    assert len({id(p) for p in adapter.parameters()}) == len(adapter.trained())


def test_trained_tensors_are_adapters_and_heads_only(blip):
    adapter = attach(blip, UniAdapterConfig(r=4))
    heads = {n.partition(".")[0] for n in adapter.copies}
    assert {n.partition("/")[0] for n in adapter.copies} == {"vision_proj", "text_proj", "itm_head"}
    assert heads == set(adapter.copies)
    before = float(blip.logit_scale)
    train(blip, adapter)
    assert float(blip.logit_scale) == before
    assert {n for n, p in blip.named_parameters() if p.requires_grad} == {
        n for n, _ in blip.named_parameters() if n.startswith("adapters.")
    }


# -- the start ---------------------------------------------------------------------------------


def test_identity_start_is_the_frozen_model_in_all_three_towers(blip):
    frozen, hidden = features(blip), fused(blip)
    attach(blip, UniAdapterConfig(r=4, key_value=3))
    assert same(features(blip), frozen)
    assert torch.equal(fused(blip), hidden)


def test_zero_up_projections_and_bias_are_the_frozen_model(blip):
    """The other way to get there: LayerNorm of a zero vector is its bias."""
    frozen, hidden = features(blip), fused(blip)
    adapter = attach(blip, UniAdapterConfig(r=4, heads=False, init="released"))
    with torch.no_grad():
        for name, p in adapter.named_trained():
            if ".up." in name or name.endswith("norm.bias"):
                p.zero_()
    assert same(features(blip), frozen)
    torch.testing.assert_close(fused(blip), hidden)


def test_released_start_moves_all_but_the_text_tower(blip):
    (images, texts), hidden = features(blip), fused(blip)
    attach(blip, UniAdapterConfig(r=4, heads=False, init="released"))
    assert torch.equal(features(blip)[1], texts)
    assert not torch.allclose(features(blip)[0], images)
    assert not torch.allclose(fused(blip), hidden)


def test_gradients_at_the_identity_start_are_finite_and_small(blip):
    adapter = attach(blip, PLAIN)
    matching_loss(blip, *batch(blip)).backward()
    most = max(float(p.grad.abs().max()) for p in adapter.trained().values() if p.grad is not None)
    assert 0 < most < 10


# -- the branches ------------------------------------------------------------------------------


def randomise(adapter) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapter.trained().values():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)


def captured(blip, paths, run):
    """Outputs of modules by path while `run` runs."""
    seen, handles = {}, []
    for path in paths:

        def keep(_module, _inputs, output, path=path):
            seen[path] = output[0] if isinstance(output, tuple) else output

        handles.append(blip.model.get_submodule(path).register_forward_hook(keep))
    run()
    for handle in handles:
        handle.remove()
    return seen


def bottleneck(adapter, layer, x):
    shared = adapter.insertions[f"text_{layer}_residual"].shared
    z = functional.layer_norm(x, x.shape[-1:], shared.norm.weight, shared.norm.bias, 1e-5)
    return torch.relu(z @ shared.down.weight.T + shared.down.bias)


def up(linear, z):
    return z @ linear.weight.T + linear.bias


def test_text_and_fusion_outputs_follow_the_formulas(blip):
    """out = y + UA_t(a) alone, out = y + UA_t(a) + UA_c(c) with a picture; y by the library."""
    adapter = attach(blip, PLAIN)
    randomise(adapter)
    textual = adapter.insertions["text_0_residual"].up
    cross = adapter.insertions["fusion_0_residual"]
    root = "text_encoder.encoder.layer.0"
    paths = [root, f"{root}.attention.output", f"{root}.crossattention.output"]
    tokens = batch(blip)[1]
    layer = blip.model.text_encoder.encoder.layer[0]

    def y(stream):
        # By hand, because calling the module would run the hook that is under test.
        inner = layer.output.dense(layer.intermediate(stream))
        return layer.output.LayerNorm(inner + stream)

    with torch.no_grad():
        seen = captured(blip, paths[:2], lambda: blip.encode_text(tokens.ids, tokens.mask))
        a = seen[paths[1]]
        expected = y(a) + 0.1 * up(textual, bottleneck(adapter, 0, a))
        torch.testing.assert_close(seen[root], expected)

        seen = captured(blip, paths, lambda: fused(blip))
        a, c = seen[paths[1]], seen[paths[2]]
        z = bottleneck(adapter, 0, c)
        inner = up(cross.up, z) + up(textual, z)
        ua_c = 0.1 * functional.layer_norm(
            inner, inner.shape[-1:], cross.norm.weight, cross.norm.bias, 1e-5
        )
        residual = 0.1 * up(textual, bottleneck(adapter, 0, a))
        torch.testing.assert_close(seen[root], y(c) + residual + ua_c)


def test_vision_output_follows_the_formula(blip):
    adapter = attach(blip, PLAIN)
    randomise(adapter)
    branch = adapter.insertions["vision_0_residual"]
    root = "vision_model.encoder.layers.0"
    layer = blip.model.get_submodule(root)
    with torch.no_grad():
        pixels, _ = batch(blip)
        paths = [root, "vision_model.embeddings", f"{root}.self_attn"]
        seen = captured(blip, paths, lambda: blip.encode_image(pixels))
        h = seen[paths[1]] + seen[paths[2]]
        z = bottleneck(adapter, 0, h)
        inner = layer.mlp.fc2(layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(h))))
        torch.testing.assert_close(seen[root], h + inner + 0.1 * up(branch.up, z))


def test_query_residual_alone(blip):
    """With UA_c at zero, what is added is UA_t of the stream before cross-attention."""
    adapter = attach(blip, PLAIN)
    randomise(adapter)
    cross = adapter.insertions["fusion_0_residual"]
    with torch.no_grad():
        cross.norm.weight.zero_()
        cross.norm.bias.zero_()
    root = "text_encoder.encoder.layer.0"
    layer = blip.model.text_encoder.encoder.layer[0]
    paths = [root, f"{root}.attention.output", f"{root}.crossattention.output"]
    with torch.no_grad():
        seen = captured(blip, paths, lambda: fused(blip))
        a, c = seen[paths[1]], seen[paths[2]]
        y = layer.output.LayerNorm(layer.output.dense(layer.intermediate(c)) + c)
        textual = adapter.insertions["text_0_residual"].up
        added = 0.1 * up(textual, bottleneck(adapter, 0, a))
        torch.testing.assert_close(seen[root] - y, added, atol=1e-5, rtol=1e-4)


def test_the_cross_modal_branch_uses_the_textual_up_projection(blip):
    adapter = attach(blip, PLAIN)
    randomise(adapter)
    texts, hidden = features(blip)[1], fused(blip)
    names = dict(adapter.named_trained())
    cross = [p for n, p in names.items() if n.startswith("fusion") and ".up." in n]
    with torch.no_grad():
        kept = [p.clone() for p in cross]
        for p in cross:
            p.zero_()
    assert torch.equal(features(blip)[1], texts)
    assert not torch.allclose(fused(blip), hidden)
    branch = adapter.insertions["fusion_0_residual"]
    with torch.no_grad():
        for p, value in zip(cross, kept, strict=True):
            p.copy_(value)
        x = torch.randn(1, 2, 16)
        before = branch(x)
        residual = adapter.insertions["text_0_residual"]
        assert residual(x).any()
        branch.textual.weight.zero_()
        branch.textual.bias.zero_()
        assert not torch.allclose(branch(x), before)
        assert not residual(x).any()


def test_a_vision_loss_reaches_the_shared_part_and_the_visual_role_only(blip):
    adapter = attach(blip, UniAdapterConfig(r=4, heads=False, init="released"))
    blip.encode_image(batch(blip)[0]).square().sum().backward()
    for name, p in adapter.named_trained():
        reached = name.startswith("vision.")  # the shared part goes by its first site
        assert (p.grad is not None and bool(p.grad.any())) == reached, name


def test_towers_of_different_width_share_leading_columns():
    clip = tiny("clip")  # 24 and 16 channels
    adapter = attach(clip, PLAIN)
    randomise(adapter)
    branch = adapter.insertions["text_0_residual"]
    assert branch.shared.down.weight.shape == (4, 24)
    x = torch.randn(2, 3, 16)
    found = branch(x)
    with torch.no_grad():
        branch.shared.down.weight[:, 16:] = 9.0
        branch.shared.norm.weight[16:] = 9.0
    assert torch.equal(branch(x), found)


# -- key and value branch ----------------------------------------------------------------------


def test_key_value_branch_is_affine_and_merges_into_every_layer(blip):
    adapter = attach(blip, UniAdapterConfig(r=4, heads=False, key_value=3))
    randomise(adapter)
    branches = {k: adapter.insertions[f"fusion_0_{k}"] for k in ("key", "value")}
    assert branches["key"] is adapter.insertions["fusion_1_key"]
    with_branch = fused(blip)
    values = {n: p.detach().clone() for n, p in adapter.named_trained()}
    detach(blip)
    plain = attach(blip, PLAIN)
    with torch.no_grad():
        for n, p in plain.named_trained():
            p.copy_(values[n])
        for layer in blip.model.text_encoder.encoder.layer:
            for kind, branch in branches.items():
                linear = getattr(layer.crossattention.self, kind)
                a, b, g = branch.down, branch.up, branch.gain
                linear.weight += g * (b.weight @ a.weight)
                linear.bias += g * (b.weight @ a.bias + b.bias)
    torch.testing.assert_close(fused(blip), with_branch, atol=1e-5, rtol=1e-4)


def test_the_adapter_itself_is_not_affine_and_is_not_merged(blip):
    adapter = attach(blip, UniAdapterConfig(r=4, heads=False, key_value=3))
    randomise(adapter)
    a, b = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    affine = {}
    for name in ("vision_0_residual", "text_0_residual", "fusion_0_residual", "fusion_0_key"):
        branch = adapter.insertions[name]
        with torch.no_grad():
            apart = branch(a) + branch(b) - branch(torch.zeros_like(a))
            affine[name] = torch.allclose(branch(a + b), apart, atol=1e-5)
    assert [name for name, found in affine.items() if found] == ["fusion_0_key"]
    with pytest.raises(UserError, match="uniadapter cannot be merged"):
        merge(blip)


def test_key_value_branch_needs_a_fusion_tower():
    with pytest.raises(UserError, match="fusion"):
        attach(tiny("clip"), UniAdapterConfig(r=4, key_value=3))


# -- clips -------------------------------------------------------------------------------------


def test_frame_weights_scale_the_patch_keys_behind_the_adapters(blip):
    adapter = attach(blip, UniAdapterConfig(r=4, heads=False, key_value=3))
    randomise(adapter)
    tokens = blip.tokenize(["a red door", "two birds"])
    mask = torch.ones(2, 3, dtype=torch.bool)
    frames = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.5, 0.5]])
    path = "text_encoder.encoder.layer.1.crossattention.self.key"
    with torch.no_grad():
        seen = blip.encode_frame_tokens(frames, mask)

        def keys(weights):
            kept = []
            handle = None

            def keep(_module, inputs, output):
                kept.append(output)

            def late(_module, _inputs):
                # The call's own hooks come last, so look at what attention gets after them.
                nonlocal handle
                handle = blip.model.get_submodule(path).register_forward_hook(keep)

            pre = blip.model.get_submodule(path).register_forward_pre_hook(late)
            blip.encode_fusion(tokens.ids, tokens.mask, seen, weights=weights)
            pre.remove()
            handle.remove()
            return kept[0].unflatten(1, (3, 17))

        # Layer 0 comes out alike where weights are 1, so compare the projections of one layer.
        plain, scaled = keys(torch.ones(2, 3)), keys(weights)
        torch.testing.assert_close(scaled[:, :, 0], plain[:, :, 0])
        torch.testing.assert_close(scaled[:, :, 1:], plain[:, :, 1:] * weights[:, :, None, None])


def test_one_frame_and_order_of_frames_change_nothing(blip):
    attach(blip, UniAdapterConfig(r=4, init="released"))
    tokens = blip.tokenize(["a red door", "two birds"])
    frames = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mask = torch.ones(2, 3, dtype=torch.bool)
        seen, pooled = blip.encode_frame_tokens(frames, mask), blip.encode_frames(frames, mask)
        texts = blip.encode_text(tokens.ids, tokens.mask)
        weights = frame_weights(texts, pooled)
        one = frame_weights(texts, pooled[:, :1])
        torch.testing.assert_close(
            blip.match(tokens.ids, tokens.mask, seen[:, :1], weights=one),
            blip.match(tokens.ids, tokens.mask, seen[:, 0]),
        )
        order = [2, 0, 1]
        torch.testing.assert_close(
            blip.match(tokens.ids, tokens.mask, seen[:, order], weights=weights[:, order]),
            blip.match(tokens.ids, tokens.mask, seen, weights=weights),
        )


# -- engine ------------------------------------------------------------------------------------


def test_detached_matches_are_bit_identical(blip):
    before, hidden = snapshot(blip), fused(blip)
    adapter = attach(blip, UniAdapterConfig(r=4, key_value=3))
    train(blip, adapter)
    assert not torch.allclose(fused(blip), hidden)
    set_strength(blip, 0)
    assert torch.equal(fused(blip), hidden)
    detach(blip)
    assert torch.equal(fused(blip), hidden)
    assert same(snapshot(blip), before)


def test_rows_of_one_batch_may_use_different_adapters(blip):
    pixels = batch(blip)[0]
    adapters, alone = [], []
    for seed in (1, 2):
        config = UniAdapterConfig(r=4, heads=False, init="released")
        adapters.append(attach(blip, config, name=f"a{seed}", seed=seed))
        adapters[-1].eval()
        alone.append(blip.encode_image(pixels[seed : seed + 1]))
        crossadapt.activate(blip, None)
    with torch.no_grad(), mixed(blip, [None, *adapters]):
        found = blip.encode_image(pixels)
    torch.testing.assert_close(found[1:], torch.cat(alone))


def test_a_residual_site_takes_parallel_insertions_only(blip, monkeypatch):
    method = get_method("uniadapter")
    config = make_config("uniadapter", {"r": 4})
    plan = method.plan(blip, config)
    first = next(item for item in plan if isinstance(item, Insertion))
    assert first.parallel
    serial = [Insertion(first.site, first.module)]
    monkeypatch.setitem(method.__dict__, "plan", lambda *_: serial)
    with pytest.raises(UserError, match="behind"):
        attach(blip, config)
    assert any(isinstance(item, Override) for item in plan)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"r": 0}, "r is"), ({"scale": 0.0}, "scale"), ({"dropout": 1.0}, "dropout"),
     ({"init": "zero"}, "init"), ({"key_value": -1}, "key_value")],
)  # fmt: skip
def test_bad_options_are_named(options, named):
    with pytest.raises(UserError, match=named):
        UniAdapterConfig(**options)


@pytest.mark.parametrize("method", ["coop", "maple", "apollo", "mv-adapter", "peft:lora"])
def test_methods_that_cannot_run_on_blip_say_so(method, blip):
    if method.startswith("peft"):
        pytest.importorskip("peft")
    with pytest.raises(UserError) as caught:
        attach(blip, make_config(method, None))
    assert caught.value.fix
    assert len(blip.adapters) == 0
