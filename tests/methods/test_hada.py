"""HADA's fusion: counts, what reaches what, the two forms, the mix. `hada.md` section (i)."""

from __future__ import annotations

import pytest
import torch
from tests.adapting import features, same, small, train
from torch.nn import functional as F

from crossadapt.adapters.attach import activate, attach, detach, set_strength
from crossadapt.adapters.folder import load_adapter, save_adapter
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import load, tiny
from crossadapt.backbones.fused import ROOM
from crossadapt.backbones.tower_tokens import TokenFeatures
from crossadapt.errors import UserError
from crossadapt.methods.hada import HadaBranch, HadaConfig, HadaFusion

# The tiny net of the invariants: tokens of 12 channels, embeddings of 4 and 6, 5 and 3 nodes.
WIDTHS, SIZES, NODES = [12, 12], [4, 6], (5, 3)
SMALL = {"transform": 8, "graph": 8, "output": 8, "heads": 2, "dropout": 0.0}


def config(**changes) -> HadaConfig:
    return HadaConfig(**{**SMALL, **changes})


def fusion(**changes) -> HadaFusion:
    torch.manual_seed(0)
    return HadaFusion({"vision": WIDTHS, "text": WIDTHS}, SIZES, config(**changes)).eval()


def seen(batch: int = 4, seed: int = 1) -> list[TokenFeatures]:
    generator = torch.Generator().manual_seed(seed)
    return [
        TokenFeatures(
            torch.randn(batch, size, generator=generator),
            torch.randn(batch, nodes, width, generator=generator),
            torch.ones(batch, nodes, dtype=torch.bool),
        )
        for size, nodes, width in zip(SIZES, NODES, WIDTHS, strict=True)
    ]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def published(transform: int, heads: int, output: int, width: int, sizes, norms: bool) -> int:
    """The count by the formula of the paper note, written out once more."""
    t, g, h, p = transform, transform, heads, output
    branch = 2 * (width * t + t) + 2 * (t * h * g + h * g) + 3 * h * g
    branch += h * g * g + g + (2 * g + sum(sizes)) * p + p
    branch += 2 * (2 * t + g + g + p) if norms else 0
    return 2 * branch + 4 * p + 1 + (2 if norms else 0)


@pytest.mark.parametrize(
    ("norm", "total", "tiny_total"), [("batch", 9_998_339, 1_987), ("none", 9_988_097, 1_825)]
)
def test_counts(norm: str, total: int, tiny_total: int) -> None:
    with torch.device("meta"):
        full = HadaFusion({t: [768, 768] for t in ("vision", "text")}, [256, 768], HadaConfig(
            norm=norm
        ))  # fmt: skip
    assert count(full) == total
    assert count(fusion(norm=norm)) == tiny_total
    assert published(512, 4, 512, 768, [256, 768], norm == "batch") == total
    assert published(8, 2, 8, 12, SIZES, norm == "batch") == tiny_total


def test_a_second_stage_trains_one_share_more() -> None:
    assert count(fusion(mix="first")) == 1_825 + 1
    assert count(fusion(mix="all")) == 1_825 + 3


def test_counts_on_a_backbone_of_that_size_need_no_weights() -> None:
    """CLIP ViT-B/32 has 512 where ALBEF has 256, and narrower texts: the formula per tower."""
    fused = load("fuse:config:clip-vit-base-patch32+config:siglip-base-patch16-224", weights=False)
    summary = summarise(fused, HadaConfig())
    rest = 2_107_392 + 1_049_088 + (1024 + 512 + 768) * 512 + 512
    vision, text = (sum(w * 512 + 512 for w in ws) + rest for ws in ((768, 768), (512, 768)))
    assert summary.per_tower == {"vision": vision, "text": text, "shared": 2_049}
    assert summary.trainable == vision + text + 2_049


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_token_of_either_model_changes_what_both_hubs_gather(norm: str) -> None:
    branch = fusion(norm=norm, inputs="raw").branches["vision"]
    hubs = []
    for change in (None, 0, 1):
        inputs = seen()
        if change is not None:
            inputs[change].tokens[:, -1] += 1
        tokens = [layer(s.tokens, s.mask) for layer, s in zip(branch.inputs, inputs, strict=True)]
        hubs.append(branch._gather(tokens, [s.mask for s in inputs]))
    assert hubs[0].shape == (4, 2, 8)
    for changed in hubs[1:]:
        for hub in (0, 1):
            assert not torch.allclose(changed[:, hub], hubs[0][:, hub])


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_vectors_do_not_depend_on_the_order_of_tokens_or_on_padding(norm: str) -> None:
    net = fusion(norm=norm)
    inputs = seen()
    before = net.encode("text", inputs)
    assert before.shape == (4, 8)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(4))
    order = [0, 3, 1, 4, 2]
    turned = TokenFeatures(
        inputs[0].embedding, inputs[0].tokens[:, order], inputs[0].mask[:, order]
    )
    torch.testing.assert_close(net.encode("text", [turned, inputs[1]]), before)
    longer = [
        TokenFeatures(s.embedding, F.pad(s.tokens, (0, 0, 0, 2), value=9.0), F.pad(s.mask, (0, 2)))
        for s in inputs
    ]
    torch.testing.assert_close(net.encode("text", longer), before)
    alone = [TokenFeatures(s.embedding[2:3], s.tokens[2:3], s.mask[2:3]) for s in inputs]
    torch.testing.assert_close(net.encode("text", alone)[0], before[2])


def test_padding_is_no_part_of_batch_statistics() -> None:
    inputs = seen()
    longer = [
        TokenFeatures(s.embedding, F.pad(s.tokens, (0, 0, 0, 3), value=50.0), F.pad(s.mask, (0, 3)))
        for s in inputs
    ]
    first, second = (fusion(norm="batch", inputs="raw").train() for _ in range(2))
    for net in (first, second):  # the last layer's dropout is not an option
        net.branches["vision"].merge.dropout.p = 0.0
    torch.testing.assert_close(first.encode("vision", inputs), second.encode("vision", longer))
    for a, b in zip(first.buffers(), second.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_first_stage_norms_see_all_nodes() -> None:
    """Four graphs of eight nodes, of which two are hubs: 32 rows make the statistics."""
    net = fusion(norm="batch", inputs="raw").train()
    branch = net.branches["vision"]
    rows = {}
    layer = branch.reduce
    layer.norm.register_forward_hook(lambda m, args, out: rows.update(count=len(args[0])))
    net.encode("vision", seen())
    assert rows["count"] == 4 * 8
    assert len([m for m in branch.modules() if isinstance(m, torch.nn.BatchNorm1d)]) == 5
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in fusion().modules())


def test_where_dropout_stands() -> None:
    later, first = fusion(dropout=0.3), fusion(dropout=0.3, norm="batch")
    for net, inputs, merge in ((later, 0.0, 0.3), (first, 0.3, 0.25)):
        branch = net.branches["text"]
        assert branch.inputs[0].dropout.p == inputs
        assert branch.reduce.dropout.p == branch.attention.dropout.p == 0.3
        assert branch.merge.dropout.p == merge


def test_inputs() -> None:
    inputs = seen()
    assert torch.equal(fusion(inputs="raw").prepare(inputs)[0].tokens, inputs[0].tokens)
    unit = fusion(inputs="unit").prepare(inputs)
    torch.testing.assert_close(unit[1].tokens.norm(dim=2), torch.ones(4, 3))
    torch.testing.assert_close(unit[1].embedding.norm(dim=1), torch.ones(4))
    net = fusion()
    assert torch.equal(net.prepare(inputs)[0].tokens, unit[0].tokens)
    net.set_scale(0.01, 0.25)
    torch.testing.assert_close(net.prepare(inputs)[0].tokens, (unit[0].tokens - 0.01) / 0.25)


def test_no_gradient_reaches_the_features() -> None:
    inputs = seen()
    for s in inputs:
        s.tokens.requires_grad_()
        s.embedding.requires_grad_()
    fusion().encode("vision", inputs).sum().backward()
    assert all(x.grad is None for s in inputs for x in (s.tokens, s.embedding))


def test_initial_values() -> None:
    torch.manual_seed(0)
    branch = HadaBranch([768], [256], HadaConfig())
    std = (2 / 768) ** 0.5
    assert float(branch.inputs[0].linear.weight.detach().std()) == pytest.approx(std, rel=0.02)
    bound = (6 / (512 + 2048)) ** 0.5
    assert float(branch.attention.source.weight.detach().abs().max()) == pytest.approx(
        bound, rel=0.01
    )
    assert (branch.attention.bias == 0).all()


# -- on a backbone -----------------------------------------------------------------------------


def attached(**changes):
    backbone = small("fuse", seed=1)
    adapter = attach(backbone, config(**changes))
    return backbone, adapter, adapter.join


def cosines(backbone) -> torch.Tensor:
    images, texts = features(backbone)
    return images @ texts.T


def member_cosines(member) -> torch.Tensor:
    from tests.adapting import TEXTS

    tokens = member.tokenize(TEXTS)
    with torch.no_grad():
        texts = member.encode_text(tokens.ids, tokens.mask)
    return F.normalize(texts, dim=1)


def test_the_trained_part_stands_in_front_and_nothing_else() -> None:
    backbone, adapter, _ = attached()
    adapter.eval()
    images, _ = features(backbone)
    torch.testing.assert_close(images[:, :8].norm(dim=1), torch.ones(3))
    assert (images[:, 8:] == 0).all()


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_strength_mixes_cosines(strength: float) -> None:
    backbone, adapter, _ = attached()
    train(backbone, adapter)
    adapter.eval()
    trained = cosines(backbone)
    activate(backbone, None)
    frozen = cosines(backbone)
    activate(backbone, "default")
    set_strength(backbone, strength)
    expected = (1 - strength) * frozen + strength * trained
    torch.testing.assert_close(cosines(backbone), expected, atol=1e-5, rtol=1e-4)


def test_a_share_of_the_first_model() -> None:
    backbone, adapter, join = attached(mix="first")
    adapter.eval()
    found = {}
    for share in (0.0, 0.25, 1.0):
        with torch.no_grad():
            join.mix.fill_(share)
        found[share] = cosines(backbone)
    torch.testing.assert_close(found[0.25], 0.75 * found[0.0] + 0.25 * found[1.0])
    # At 1 it is the first model alone, at 0 the fusion alone.
    first = backbone.members[0]
    images, _ = features(backbone)
    torch.testing.assert_close(images[:, ROOM : ROOM + 12].norm(dim=1), torch.ones(3))
    torch.testing.assert_close(
        features(backbone)[1][:, ROOM : ROOM + 12], member_cosines(first), atol=1e-5, rtol=1e-5
    )
    join.mix = None
    torch.testing.assert_close(cosines(backbone), found[0.0])


def test_shares_keep_their_bounds() -> None:
    join = fusion(mix="first")
    assert join.weights().tolist() == [0.5, 0.5, 0.0]
    for start, kept in ((-3.0, 0.1), (3.0, 0.9)):
        with torch.no_grad():
            join.mix.fill_(start)
        join.limit()
        assert float(join.mix.detach()) == pytest.approx(kept)
    join = fusion(mix="all")
    torch.testing.assert_close(join.weights(), torch.tensor([0.4, 0.4, 0.2]))
    with torch.no_grad():
        join.mix.fill_(-1.0)
    join.limit()
    torch.testing.assert_close(join.weights(), torch.tensor([0.1, 0.1, 0.01]) / 0.21)


def test_gradients_reach_the_shares() -> None:
    for mix in ("first", "all"):
        backbone, adapter, join = attached(mix=mix)
        train(backbone, adapter, steps=1)
        assert join.mix.grad is not None
        assert bool(join.mix.grad.isfinite().all())
        assert bool(join.mix.grad.any())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_running_statistics_and_scale_are_saved(norm: str, tmp_path) -> None:
    backbone, adapter, join = attached(norm=norm, mix="first")
    join.set_scale(0.02, 0.3)
    train(backbone, adapter, steps=3)
    adapter.eval()
    expected = features(backbone)
    save_adapter(backbone, "default", tmp_path / "a")
    detach(backbone)
    again = load_adapter(backbone, tmp_path / "a")
    assert same(features(backbone), expected)
    assert float(again.join.deviation) == pytest.approx(0.3)
    assert len(again.kept()) == 2 + (20 + 2) * (norm == "batch")


def test_running_statistics_are_part_of_the_identity_of_vectors(tmp_path) -> None:
    from crossadapt.search.embedder import Embedder

    backbone, _, join = attached(norm="batch")
    save_adapter(backbone, "default", tmp_path / "a")
    with torch.no_grad():
        join.branches["text"].merge.norm.running_mean.add_(1)
    save_adapter(backbone, "default", tmp_path / "b")
    embedder = Embedder(small("fuse", seed=1))
    for name in ("a", "b"):
        embedder.add(name, tmp_path / name)
    assert embedder.fingerprint("a") != embedder.fingerprint("b")


def test_three_members() -> None:
    from crossadapt.backbones.fused import FusedBackbone

    members = [tiny("clip", seed=0), tiny("siglip"), tiny("clip", seed=2, text_width=24)]
    backbone = FusedBackbone(members, source="tiny:three")
    adapter = attach(backbone, config(mix="all"))
    assert adapter.join.weights().shape == (4,)
    branch = adapter.join.branches["text"]
    assert branch.merge.linear.in_features == 3 * 8 + 12 + 24 + 12
    train(backbone, adapter)
    adapter.eval()
    torch.testing.assert_close(features(backbone)[0].norm(dim=1), torch.ones(3))


def test_one_backbone_is_not_enough() -> None:
    with pytest.raises(UserError, match="fuses several backbones, and tiny:clip is one") as error:
        attach(tiny("clip"), config())
    assert "fuse:" in str(error.value.fix)


@pytest.mark.parametrize(
    "wrong",
    [
        {"output": 513},
        {"output": 0},
        {"heads": 0},
        {"dropout": 1.0},
        {"norm": "layer"},
        {"inputs": "row"},
        {"mix": "frist"},
    ],
)
def test_wrong_options_are_refused(wrong) -> None:
    with pytest.raises(UserError) as error:
        config(**wrong)
    assert error.value.where == next(iter(wrong))
