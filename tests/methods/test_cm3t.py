"""What only CM3T promises: its counts, its identities, and modalities that come and go."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from tests.adapting import batch, features, loss, same, snapshot, train

from crossadapt.adapters.attach import activate, attach, attached, detach, frozen
from crossadapt.adapters.folder import load_adapter, save_adapter
from crossadapt.adapters.inside import HeadsHook, head_count, head_projections
from crossadapt.adapters.mixture import mixed
from crossadapt.adapters.plan import Heads
from crossadapt.adapters.summary import summarise
from crossadapt.adapters.validate import check_plan
from crossadapt.backbones import load, tiny
from crossadapt.errors import UserError
from crossadapt.layers.bottleneck import ParallelBottleneck
from crossadapt.layers.head_adapters import HeadAdapter, HeadBranches, HeadPrefix
from crossadapt.layers.modalities import (
    CrossAttentionAdapter,
    ModalityBranch,
    ModalityFusion,
    modalities,
)
from crossadapt.methods.cm3t import CM3TConfig, add_modalities
from crossadapt.methods.projection import ProjectionConfig

C, HEADS, R, LENGTH, SOURCE, BLOCKS = 32, 4, 4, 4, 12, 2
SMALL = {"r": 4, "prefix": 4, "dropout": 0.0}
SWIN_B = [(128, 2), (256, 2), (512, 18), (1024, 2)]


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture
def backbone():
    return tiny("clip", vision_layers=2, text_layers=2, seed=1)


def tokens(rows: int = 3, length: int = 5, size: int = SOURCE, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[0, 3:] = False
    return torch.randn(rows, length, size, generator=generator), mask


def image(backbone, **given):
    pixels, _ = batch(backbone)
    with torch.no_grad(), modalities(given):
        return backbone.encode_image(pixels)


def two_modalities(backbone, name: str = "default", order=("text", "signals")):
    """An adapter with two modalities, all of it drawn at random so that everything matters."""
    sizes = {"text": SOURCE, "signals": 7}
    config = CM3TConfig(**SMALL, modalities=tuple(f"{n}={sizes[n]}" for n in order), inner=4)
    adapter = attach(backbone, config, name=name)
    for key, p in adapter.named_trained():
        generator = torch.Generator().manual_seed(sum(map(ord, key)))
        p.data = torch.randn(p.shape, generator=generator) * 0.3
    return adapter.eval()


# -- counts: note section (i) 2 and 11 --------------------------------------------------------


def test_counts_of_the_tiny_net() -> None:
    assert BLOCKS * count(HeadAdapter(C, HEADS, R)) == 1376
    assert BLOCKS * count(HeadPrefix(C, HEADS, LENGTH)) == 1288
    assert BLOCKS * count(ParallelBottleneck(C, C // 4, scale=0.5)) == 1104
    assert BLOCKS * count(CrossAttentionAdapter(C, SOURCE, C // 4)) == 1776
    assert BLOCKS * (count(ModalityFusion(C // 4)) - 1) == 384  # the scalar eta apart


def test_counts_on_video_swin_b() -> None:
    totals = dict.fromkeys(("adapter", "prefix", "cross", "fusion", "blocks"), 0)
    with torch.device("meta"):
        for width, depth in SWIN_B:
            heads, inner = width // 32, width // 8
            for _ in range(depth):
                totals["adapter"] += count(HeadAdapter(width, heads, 16))
                totals["prefix"] += count(HeadPrefix(width, heads, 16))
                totals["cross"] += count(CrossAttentionAdapter(width, 768, inner))
                totals["fusion"] += count(ModalityFusion(inner)) - 1
                # qkv, projection, MLP of four times the width, two norms; position bias.
                totals["blocks"] += 12 * width**2 + 13 * width + 15 * 13 * 13 * heads
        for r, published in ((4, 934_112), (8, 1_856_192), (32, 7_388_672)):
            sizes = (depth * count(HeadAdapter(w, w // 32, r)) for w, depth in SWIN_B)
            assert sum(sizes) == published
    assert totals["adapter"] == 3_700_352
    assert totals["prefix"] == 3_682_680
    assert totals["cross"] == 4_119_712
    assert totals["fusion"] == 327_168
    merging = sum(8 * width + 8 * width**2 for width, _ in SWIN_B[:3])
    stem = 3 * 2 * 4 * 4 * 128 + 128 + 2 * 128
    assert totals["blocks"] + merging + stem + 2 * 1024 == 87_638_984


def test_mlp_branch_on_video_swin_b_and_the_whole() -> None:
    with torch.device("meta"):
        one = [depth * count(ParallelBottleneck(w, w // 4, scale=0.5)) for w, depth in SWIN_B]
    assert sum(one) == 3_504_832
    video = sum(one) + 3_700_352 + 3_682_680
    assert video == 10_887_864
    # Two more modalities, their fusion, and the 397 outputs of Epic-Kitchens on 1,024 channels.
    assert video + 2 * 4_119_712 + 327_168 + 397 * 1025 == 19_861_381


def test_counts_on_clip_vit_b_32() -> None:
    backbone = load("config:clip-vit-base-patch32", weights=False)
    video = summarise(backbone, CM3TConfig())
    heads = 12 * (768 * 16 + 16 + 16 * 64) + 768
    prefix = 12 * (768 * 16 + 16 * 64) + 12
    branch = 768**2 // 2 + 768 // 4 + 768
    assert video.trainable == 12 * (heads + prefix + branch) == 7_395_984
    assert video.per_tower == {"vision": video.trainable, "text": 0, "shared": 0}
    more = summarise(backbone, CM3TConfig(modalities=("text=512", "signals=18")))
    each = sum(2 * 768 * 96 + 2 * size * 96 + 3 * 96 + 5 * 768 for size in (512, 18))
    assert more.trainable - video.trainable == 12 * (each + 3 * 96**2 + 1)


# -- identity and gradients: 1, 3, 4 ----------------------------------------------------------


@pytest.mark.parametrize("gate", ["scalar", "add"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_new_adapter_is_the_frozen_model(family, gate) -> None:
    backbone = tiny(family, seed=1)
    before = features(backbone)
    attach(backbone, CM3TConfig(**SMALL, gate=gate, modalities=("text=12",))).eval()
    assert same(features(backbone), before)
    assert torch.equal(image(backbone, text=tokens()), before[0])


def test_gradients_of_the_first_and_the_second_step(backbone) -> None:
    adapter = attach(backbone, CM3TConfig(**SMALL, modalities=("text=12",)))
    trained = adapter.trained()

    def live() -> set[str]:
        for p in trained.values():
            p.grad = None
        with modalities({"text": tokens()}):
            loss(backbone).backward()
        return {n for n, p in trained.items() if p.grad is not None and bool(p.grad.any())}

    first = live()
    ends = (".adapter.up", ".adapter.bias", ".prefix.gate", ".fusion.eta", ".mlp.up.weight")
    assert {n for n in trained if n.endswith((*ends, ".mlp.up.bias"))} == first
    with torch.no_grad():
        for p in trained.values():
            if p.grad is not None:
                p.sub_(0.1 * p.grad)
    # One modality: nothing to weigh, so the fusion's query and key have no say; a bias of the keys
    # shifts all logits alike.
    idle = {n for n in trained if n.endswith((".fusion.query.weight", ".fusion.key.weight"))}
    rounding = {n for n in trained if n.endswith(".key.bias")}
    assert set(trained) - live() - rounding == idle


def test_training_leaves_the_backbone_and_the_first_stage_alone(backbone) -> None:
    before = snapshot(backbone)
    first = attach(backbone, CM3TConfig(**SMALL))
    train(backbone, first, steps=5)
    assert same(snapshot(backbone), before)
    plain = image(backbone)
    second = add_modalities(backbone, modalities={"text": SOURCE}, into="second")
    old = {n: p.detach().clone() for n, p in second.named_trained() if n in first.trained()}
    new = [p for p in second.trained().values() if p.requires_grad]
    optimiser = torch.optim.AdamW(second.trained().values(), lr=0.02)
    with modalities({"text": tokens()}):
        for _ in range(5):
            optimiser.zero_grad()
            loss(backbone).backward()
            optimiser.step()
    now = second.trained()
    assert same({n: now[n].detach() for n in old}, old)
    assert len(old) == len(first.trained())
    assert len(new) == len(now) - len(old)
    assert same(snapshot(backbone), before)
    assert torch.equal(image(backbone), plain)
    assert not torch.equal(image(backbone, text=tokens()), plain)


# -- heads: 5, 6 ------------------------------------------------------------------------------


def test_the_adapter_of_a_head_changes_its_own_channels_only() -> None:
    adapter = HeadAdapter(C, HEADS, R)
    torch.nn.init.normal_(adapter.up)
    x = torch.randn(2, 5, C)
    before = adapter(x).unflatten(-1, (HEADS, -1))
    with torch.no_grad():
        adapter.up[1].zero_()
    after = adapter(x).unflatten(-1, (HEADS, -1))
    assert torch.equal(after[..., [0, 2, 3], :], before[..., [0, 2, 3], :])
    assert not after[..., 1, :].any()
    assert before[..., 1, :].any()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_gate_mass_is_prefix_tuning(kind) -> None:
    # Prefix keys and values joined to the frozen ones, one softmax over both, against the gate.
    backbone = tiny(kind, seed=1)
    site = next(s for s in backbone.sites() if s.name == "vision.0.attention")
    attention = backbone.model.get_submodule(site.path)
    heads, width = attention.num_heads, site.width
    size = width // heads
    attention.q_proj.bias.data.zero_()
    keys, values = torch.randn(2, heads, LENGTH, size).unbind(0)
    adapter = attach(backbone, CM3TConfig(r=0, prefix=LENGTH, gate="mass", mlp=0))
    branches = adapter.inside["vision_0_heads"]
    query = attention.q_proj.weight.unflatten(0, (heads, size))
    with torch.no_grad():
        down = torch.einsum("hsc,hls->hlc", query, keys) * size**-0.5
        branches.prefix.down.copy_(down.flatten(0, 1))
        branches.prefix.up.copy_(values)
        x = torch.randn(2, 6, width)
        got = attention(hidden_states=x, attention_mask=None)[0]
    with torch.no_grad(), frozen(backbone):

        def split(y):
            return y.unflatten(-1, (heads, size)).transpose(1, 2)

        q, k, v = (split(p(x)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        k = torch.cat([keys.expand(2, -1, -1, -1), k], dim=2)
        v = torch.cat([values.expand(2, -1, -1, -1), v], dim=2)
        mixed_heads = (q @ k.transpose(-1, -2) * size**-0.5).softmax(-1) @ v
        expected = attention.out_proj(mixed_heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_two_layouts_of_an_attention_give_the_same() -> None:
    # Queries, keys and values from one projection (as in BLIP), against three.
    from transformers import BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipAttention

    config = BlipVisionConfig(hidden_size=C, num_attention_heads=HEADS, attention_dropout=0.0)
    config._attn_implementation = "eager"
    attention = BlipAttention(config).eval()
    assert head_projections(attention) == (("qkv",), "projection")
    assert head_projections(torch.nn.MultiheadAttention(C, HEADS)) is None

    class Working:
        strength = 1.0

    branches = HeadBranches(HeadPrefix(C, HEADS, LENGTH, "mass"), None)
    hook = HeadsHook(Working(), branches, HEADS)  # type: ignore[arg-type]
    attention.qkv.register_forward_hook(hook.keeper(0, 1))
    seen = []
    attention.projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    attention.projection.register_forward_pre_hook(hook)
    attention.projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 5, C)
    with torch.no_grad():
        attention(hidden_states=x)
        q, k, _ = attention.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mass = (q @ k.transpose(-1, -2) * (C // HEADS) ** -0.5).logsumexp(-1)
        expected = branches(seen[0], x, mass=mass)
    torch.testing.assert_close(seen[1], expected)
    assert not torch.equal(seen[0], seen[1])


# -- modalities: 7, 8, 9, 10 ------------------------------------------------------------------


def test_a_modality_that_is_not_there_equals_a_masked_one(backbone) -> None:
    two_modalities(backbone)
    text, signals = tokens(), tokens(size=7, seed=1)
    gone = (signals[0], torch.zeros_like(signals[1]))
    both = image(backbone, text=text, signals=signals)
    assert torch.equal(image(backbone, text=text, signals=gone), image(backbone, text=text))
    assert not torch.allclose(both, image(backbone, text=text), atol=1e-4)
    nothing = image(backbone, signals=gone)
    assert bool(nothing.isfinite().all())
    assert torch.equal(nothing, image(backbone))
    # The other clips of a batch do not care.
    part = (signals[0], signals[1].clone())
    part[1][1] = False
    mixed_in = image(backbone, text=text, signals=part)
    torch.testing.assert_close(mixed_in[[0, 2]], both[[0, 2]])
    torch.testing.assert_close(mixed_in[1], image(backbone, text=text)[1])


def test_what_is_masked_does_not_matter(backbone) -> None:
    two_modalities(backbone)
    content, mask = tokens()
    other = torch.where(mask[..., None], content, torch.full_like(content, 9.0))
    torch.testing.assert_close(
        image(backbone, text=(content, mask)), image(backbone, text=(other, mask))
    )


def test_without_modalities_it_is_the_video_only_network(backbone) -> None:
    full = two_modalities(backbone)
    alone = attach(backbone, CM3TConfig(**SMALL), name="alone").eval()
    with torch.no_grad():
        for name, p in alone.named_trained():
            p.copy_(full.trained()[name])
    expected = image(backbone)
    detach(backbone, "alone")
    activate(backbone, "default")
    assert torch.equal(image(backbone), expected)


def test_fusion_weights_are_a_distribution_over_what_is_there() -> None:
    fusion = ModalityFusion(8)
    queries, seen = [list(torch.randn(3, 4, 5, 8).unbind(0)) for _ in range(2)]
    there = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    weights = fusion.weights(queries, seen, there)
    assert weights.shape == (4, 5, 3)
    assert bool((weights >= 0).all())
    assert not weights.masked_select(~there[:, None].expand_as(weights)).any()
    expected = torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None].expand(4, 5)
    torch.testing.assert_close(weights.sum(-1), expected)
    one = fusion.weights(queries[:1], seen[:1], torch.ones(4, 1, dtype=torch.bool))
    assert torch.equal(one, torch.ones(4, 5, 1))


def test_one_modality_is_its_own_fusion() -> None:
    branch = ModalityBranch(C, {"text": SOURCE}, 8)
    torch.nn.init.ones_(branch.fusion.eta)
    y, given = torch.randn(3, 4, C), tokens()
    adapter = branch.adapters["text"]
    with torch.no_grad(), modalities({"text": given}):
        _, seen = adapter.look(y, given, torch.arange(3))
        torch.testing.assert_close(branch(y), adapter.back(y, seen), rtol=1e-4, atol=1e-4)


def test_the_order_of_modalities_does_not_matter(backbone) -> None:
    given = {"text": tokens(), "signals": tokens(size=7, seed=1)}
    two_modalities(backbone, "one")
    expected = image(backbone, **given)
    two_modalities(backbone, "other", order=("signals", "text"))
    torch.testing.assert_close(image(backbone, **given), expected)


def test_windows_do_not_see_each_other_or_their_place() -> None:
    # Swin's windows, or frames: rows of a batch. Any order in, the same order out.
    branches = HeadBranches(HeadPrefix(C, HEADS, LENGTH, "mass"), HeadAdapter(C, HEADS, R))
    torch.nn.init.normal_(branches.adapter.up)
    heads, x, mass = torch.randn(6, 5, C), torch.randn(6, 5, C), torch.randn(6, HEADS, 5)
    order = torch.randperm(6)
    torch.testing.assert_close(
        branches(heads, x, mass)[order], branches(heads[order], x[order], mass[order])
    )
    # A token's cross-attention depends on the token and its clip, not on its neighbours.
    branch = ModalityBranch(C, {"text": SOURCE}, 8)
    torch.nn.init.ones_(branch.fusion.eta)
    clip = torch.randn(1, 7, SOURCE), torch.ones(1, 7, dtype=torch.bool)

    def added(windows):
        many = tuple(t.expand(len(windows), *t.shape[1:]) for t in clip)
        with modalities({"text": many}):
            return branch(windows)

    y = torch.randn(20, C)
    small, large = added(y.reshape(5, 4, C)), added(y.reshape(2, 10, C))
    torch.testing.assert_close(small.reshape(20, C), large.reshape(20, C))


def test_adding_a_modality_leaves_the_others_as_they_were(backbone) -> None:
    config = CM3TConfig(**SMALL, modalities=("text=12",), inner=4)
    first = attach(backbone, config)
    for p in first.trained().values():
        p.data.normal_(std=0.3)
    first.eval()
    text, signals = tokens(), tokens(size=7, seed=1)
    alone, with_text = image(backbone), image(backbone, text=text)
    second = add_modalities(backbone, modalities={"signals": 7}, into="both")
    assert second.config.sources() == {"text": 12, "signals": 7}
    for p in second.trained().values():
        if p.requires_grad:
            p.data.normal_(std=0.3)
    assert torch.equal(image(backbone), alone)
    assert torch.equal(image(backbone, text=text), with_text)
    assert not torch.equal(image(backbone, text=text, signals=signals), with_text)


def test_frames_see_the_modalities_of_their_own_clip(backbone) -> None:
    two_modalities(backbone)
    pixels, _ = batch(backbone)
    clips = pixels[[0, 1, 2, 0]].unflatten(0, (2, 2))
    mask = torch.tensor([[True, False], [True, True]])
    text = tokens(rows=2)
    with torch.no_grad(), modalities({"text": text}):
        together = backbone.encode_frames(clips, mask)
    for row in range(2):
        one = (text[0][row : row + 1], text[1][row : row + 1])
        with torch.no_grad(), modalities({"text": one}):
            alone = backbone.encode_frames(clips[row : row + 1], mask[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


# -- a task that only the second modality can solve: 12 ----------------------------------------


def test_a_label_that_lives_in_the_other_modality_is_learned(backbone) -> None:
    def drawn(rows: int, seed: int):
        # Fresh noise every time, so that nothing can be learned by heart.
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(rows) % 2
        pixels = torch.randn(rows, 3, *backbone.preprocess.size, generator=generator)
        content = torch.randn(rows, 3, SOURCE, generator=generator)
        content[:, :, 0] = 4.0 * labels[:, None] - 2.0
        return labels, pixels, {"text": (content, torch.ones(rows, 3, dtype=torch.bool))}

    def accuracy(with_text: bool) -> float:
        adapter = attach(backbone, CM3TConfig(**SMALL, modalities=("text=12",)))
        head = torch.nn.Linear(backbone.embedding_dim, 2)
        torch.nn.init.zeros_(head.weight)
        optimiser = torch.optim.Adam([*adapter.trained().values(), *head.parameters()], lr=0.01)

        def scores(pixels, text):
            with modalities(text if with_text else {}):
                return head(torch.nn.functional.normalize(backbone.encode_image(pixels), dim=-1))

        for step in range(60):
            labels, *inputs = drawn(8, step)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(scores(*inputs), labels).backward()
            optimiser.step()
        labels, *inputs = drawn(100, 1000)
        with torch.no_grad():
            found = float((scores(*inputs).argmax(-1) == labels).float().mean())
        detach(backbone)
        return found

    assert accuracy(True) > 0.9
    assert 0.35 <= accuracy(False) <= 0.65


# -- what can be wrong, and what else must work -----------------------------------------------


def test_saved_with_modalities_and_loaded(backbone, tmp_path) -> None:
    two_modalities(backbone)
    given = {"text": tokens(), "signals": tokens(size=7, seed=1)}
    expected = image(backbone, **given)
    save_adapter(backbone, "default", tmp_path / "a")
    detach(backbone)
    load_adapter(backbone, tmp_path / "a", name="again")
    assert torch.equal(image(backbone, **given), expected)
    assert attached(backbone, "again").config.sources() == {"text": 12, "signals": 7}


def test_a_copy_of_the_backbone_works_by_itself(backbone) -> None:
    two_modalities(backbone)
    twin = copy.deepcopy(backbone)
    expected = image(backbone, text=tokens())
    assert torch.equal(image(twin, text=tokens()), expected)
    for p in twin.adapters["default"].parameters():
        p.data.zero_()
    assert torch.equal(image(backbone, text=tokens()), expected)
    assert not torch.equal(image(twin, text=tokens()), expected)


def test_threads_do_not_mix_up_what_they_encode(backbone) -> None:
    two_modalities(backbone)
    expected = [image(backbone, text=tokens(seed=s)) for s in range(2)]
    wrong = []

    def work(seed: int) -> None:
        found = [image(backbone, text=tokens(seed=seed)) for _ in range(10)]
        wrong.extend(seed for x in found if not torch.equal(x, expected[seed]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_is_no_pure_insertion(backbone) -> None:
    adapter = two_modalities(backbone)
    assert not adapter.is_pure_insertion
    assert not adapter.is_pure_override
    activate(backbone, None)
    with (
        pytest.raises(UserError, match="cannot share a batch"),
        mixed(backbone, [adapter, None, None]),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"r": -1}, "r"),
        ({"prefix": -1}, "prefix"),
        ({"mlp": -1}, "mlp"),
        ({"gate": "soft"}, "gate"),
        ({"scale": 0.0}, "scale"),
        ({"dropout": 1.0}, "dropout"),
        ({"inner": 0}, "inner"),
        ({"cross_layers": 0}, "cross_layers"),
        ({"modalities": ("text",)}, "modalities"),
        ({"modalities": ("text=0",)}, "modalities"),
        ({"modalities": ("text=4", "text=5")}, "modalities"),
    ],
)
def test_options_that_cannot_be_built_are_named(options, named) -> None:
    with pytest.raises(UserError) as error:
        CM3TConfig(**options)
    assert error.value.where == named


def test_plans_that_do_not_fit_are_refused(backbone) -> None:
    for options, match in (
        ({"mlp": 10**6}, "mlp"),
        ({"inner": 10**6}, "inner"),
        ({"cross_layers": 3, "modalities": ("text=4",)}, "cross_layers"),
    ):
        with pytest.raises(UserError, match=match):
            attach(backbone, CM3TConfig(**options))
    with pytest.raises(UserError, match="takes no modalities"):
        attach_other(backbone)
    assert list(backbone.adapters) == ["other"]
    site = next(s for s in backbone.sites() if s.kind == "mlp")
    with pytest.raises(UserError, match="cannot be reached"):
        head_count(backbone, site)
    branches = HeadBranches(None, HeadAdapter(site.width, 4, 4))
    with pytest.raises(UserError, match="no attention"):
        check_plan(backbone, [Heads(site, branches)], "cm3t")


def attach_other(backbone) -> None:
    attach(backbone, ProjectionConfig(), name="other")
    add_modalities(backbone, "other", modalities={"text": 4}, into="more")


def test_tokens_of_another_size_are_refused(backbone) -> None:
    two_modalities(backbone)
    with pytest.raises(UserError, match="12"):
        image(backbone, text=tokens(size=5))


def test_cross_attention_may_stand_in_the_last_layers_only(backbone) -> None:
    adapter = attach(backbone, CM3TConfig(**SMALL, modalities=("text=12",), cross_layers=1))
    assert [n for n in adapter.inside if "stream" in n] == ["vision_1_stream"]


def test_packed_attention_of_open_clip_is_refused_and_nothing_is_left_behind() -> None:
    pytest.importorskip("open_clip")
    packed = tiny("open_clip", vision_layers=2, text_layers=2, seed=1)
    before = features(packed)
    with pytest.raises(UserError, match=r"heads of .* cannot be reached one by one") as error:
        attach(packed, CM3TConfig(**SMALL))
    assert "attention-adapter" in str(error.value)
    assert len(packed.adapters) == 0
    assert same(features(packed), before)
