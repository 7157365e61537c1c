"""Tip-Adapter, Tip-Adapter-F and XMAdapter against hand-computed values and their invariants."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from crossadapt.adapters.classifier import Support
from crossadapt.adapters.registry import make_config
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import load
from crossadapt.errors import UserError
from crossadapt.layers.class_cache import ClassCache
from crossadapt.layers.feature_cache import (
    affinity,
    class_sums,
    disagreement_weights,
    grid,
    mean_of_views,
)
from crossadapt.methods.tip_adapter import TipAdapterConfig
from crossadapt.methods.xmadapter import MixedCache, XMAdapterConfig

N, K, C, D, B = 5, 3, 16, 8, 4
CLASSES = tuple("abcde")


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


SUPPORT = Support(unit(N * K, C, seed=1), unit(N, C, seed=2))
QUERIES = unit(B, C, seed=3)
LABELS = torch.tensor([0, 1, 2, 4])
ONE_HOT = torch.eye(N).repeat_interleave(K, dim=0)


def tip(trained: bool = False, alpha: float = 1.3, beta: float = 2.7) -> ClassCache:
    cache = ClassCache(CLASSES, K, C, alpha, beta, trained)
    cache.build(SUPPORT)
    return cache


def mixed(gamma: float | None = None, **options) -> MixedCache:
    torch.manual_seed(0)
    config = XMAdapterConfig(CLASSES, K, alpha=1.3, beta=2.7, **options)
    cache = MixedCache(config, C, D)
    cache.build(SUPPORT)
    if gamma is not None:
        with torch.no_grad():
            cache.gate.fill_(math.inf if gamma == 1 else -math.inf if gamma == 0 else 0.0)
    return cache


def test_logits_by_hand_on_two_classes() -> None:
    cache = ClassCache(("x", "y"), 1, 2, alpha=2.0, beta=1.0, trained_keys=False)
    cache.build(Support(torch.eye(2), torch.tensor([[0.6, 0.8], [1.0, 0.0]])))
    [found] = cache.logits(torch.tensor([[3.0, 4.0]])).tolist()
    # f = (0.6, 0.8): text cosines 1 and 0.6, key cosines 0.6 and 0.8.
    wanted = [100 + 2 * math.exp(-0.4), 60 + 2 * math.exp(-0.2)]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_logits_equal_the_published_formula() -> None:
    cosines = QUERIES @ SUPPORT.keys.T
    wanted = 100 * QUERIES @ SUPPORT.text.T + 1.3 * torch.exp(-2.7 * (1 - cosines)) @ ONE_HOT
    torch.testing.assert_close(tip().logits(QUERIES), wanted)
    # Features of any length count by their direction.
    torch.testing.assert_close(tip().logits(7 * QUERIES), wanted)


@pytest.mark.parametrize("make", [tip, mixed], ids=["tip", "xmadapter"])
def test_alpha_zero_is_zero_shot_exactly(make) -> None:
    cache = make()
    cache.set_sharpness(0.0, 2.7)
    assert torch.equal(cache.logits(QUERIES), cache.zero_shot(QUERIES))
    torch.testing.assert_close(cache.zero_shot(QUERIES), 100 * QUERIES @ SUPPORT.text.T)


def test_gamma_one_is_tip_adapter_and_gamma_zero_ignores_the_keys() -> None:
    torch.testing.assert_close(
        mixed(gamma=1).logits(QUERIES), tip().logits(QUERIES), rtol=0, atol=1e-5
    )
    blind = mixed(gamma=0)
    before = blind.logits(QUERIES)
    with torch.no_grad():
        blind.keys.copy_(unit(N * K, C, seed=9))
    assert torch.equal(blind.logits(QUERIES), before)


@pytest.mark.parametrize("make", [tip, mixed], ids=["tip", "xmadapter"])
def test_beta_zero_adds_k_to_every_class(make) -> None:
    cache = make()
    cache.set_sharpness(1.3, 0.0)
    part = cache.cache_part(QUERIES)
    torch.testing.assert_close(part, torch.full((B, N), float(K)))
    logits = cache.logits(QUERIES)
    assert torch.equal(logits.argmax(1), cache.zero_shot(QUERIES).argmax(1))


def test_affinities_stay_in_their_range_and_a_key_finds_itself() -> None:
    found = affinity(QUERIES @ SUPPORT.keys.T, 2.7)
    assert float(found.min()) >= math.exp(-2 * 2.7)
    assert float(found.max()) <= 1
    itself = affinity(SUPPORT.keys @ SUPPORT.keys.T, 2.7).diagonal()
    torch.testing.assert_close(itself, torch.ones(N * K))
    with torch.no_grad():
        by_image, by_text = mixed().affinities(QUERIES)
    assert by_image.shape == (B, N * K)
    assert by_text.shape == (B, N)
    assert math.exp(-2 * 2.7) - 1e-6 <= float(by_text.min()) <= float(by_text.max()) <= 1 + 1e-6


def test_tip_f_starts_as_tip_and_one_step_moves_the_keys_only() -> None:
    fine = tip(trained=True)
    assert torch.equal(fine.logits(QUERIES), tip().logits(QUERIES))
    before = {name: x.clone() for name, x in fine.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in fine.parameters() if p.requires_grad], lr=1e-2)
    fine.loss(QUERIES, LABELS)[0].backward()
    optimiser.step()
    changed = {n for n, x in fine.state_dict().items() if not torch.equal(x, before[n])}
    assert changed == {"keys"}
    # The keys are not put back on the unit sphere.
    assert not torch.allclose(fine.keys.norm(dim=1), torch.ones(N * K))


def test_text_affinity_over_rows_equals_k_times_the_class_form() -> None:
    cache = mixed()
    g = F.normalize(cache.img2txt(QUERIES), dim=-1)
    rows = ONE_HOT @ F.normalize(cache.meta(SUPPORT.text), dim=-1)
    by_row = torch.exp(-2.7 * (1 - g @ rows.T))
    assert torch.equal(by_row.view(B, N, K).amax(2), by_row.view(B, N, K).amin(2))
    torch.testing.assert_close(by_row @ ONE_HOT, K * cache.affinities(QUERIES)[1])
    # The mixture as the formula has it, gamma one half at the start.
    by_image = torch.exp(-2.7 * (1 - QUERIES @ SUPPORT.keys.T))
    whole = (0.5 * by_image + 0.5 * by_row) @ ONE_HOT
    torch.testing.assert_close(cache.cache_part(QUERIES), whole)


def test_order_of_rows_and_of_classes_does_not_matter() -> None:
    found = affinity(QUERIES @ SUPPORT.keys.T, 2.7)
    labels = torch.arange(N).repeat_interleave(K)
    order = torch.randperm(N * K, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        class_sums(found[:, order], labels[order], N), class_sums(found, labels, N)
    )
    torch.testing.assert_close(class_sums(found, labels, N), found @ ONE_HOT)
    turn = torch.tensor([3, 0, 4, 1, 2])
    keys = SUPPORT.keys.view(N, K, C)[turn].reshape(N * K, C)
    for make in (tip, mixed):
        other = make()
        other.build(Support(keys, SUPPORT.text[turn]))
        torch.testing.assert_close(other.logits(QUERIES), make().logits(QUERIES)[:, turn])


def test_hard_weights() -> None:
    one, other = torch.rand(B, 7), torch.rand(B, 7, requires_grad=True)
    weights = disagreement_weights(one, other, 0.5)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-6)
    assert float(weights.min()) >= 0.5
    assert not weights.requires_grad
    difference = (one - other.detach()).abs().mean(1)
    torch.testing.assert_close(weights, 0.5 + 0.5 * difference / difference.mean())
    assert torch.equal(disagreement_weights(one, one, 0.5), torch.ones(B))
    assert torch.allclose(disagreement_weights(one, other, 0.0), torch.ones(B))


def test_lambda_zero_is_plain_cross_entropy_and_lambda_counts() -> None:
    plain = mixed(hard_weight=0.0)
    wanted = F.cross_entropy(plain.logits(QUERIES), LABELS)
    torch.testing.assert_close(plain.loss(QUERIES, LABELS)[0], wanted)
    hard = mixed(hard_weight=1.0).loss(QUERIES, LABELS)[0]
    assert hard.item() != pytest.approx(wanted.item())


@pytest.mark.parametrize(
    ("gamma", "alpha", "alive"), [(0.5, 1.3, True), (1, 1.3, False), (0.5, 0.0, False)]
)
def test_text_networks_learn_if_and_only_if_they_count(gamma, alpha, alive) -> None:
    cache = mixed(gamma=gamma)
    cache.set_sharpness(alpha, 2.7)
    cache.loss(QUERIES, LABELS)[0].backward()
    for net in (cache.meta, cache.img2txt):
        assert bool(net.weight.grad.any()) is alive


def test_both_networks_start_alike_and_semi_orthogonal() -> None:
    cache = mixed()
    assert torch.equal(cache.meta.weight, cache.img2txt.weight)
    torch.testing.assert_close(cache.meta.weight @ cache.meta.weight.T, torch.eye(D))
    assert not cache.meta.bias.any()


def test_text_keys_of_their_own() -> None:
    cache, other = mixed(), mixed()
    other.build(Support(SUPPORT.keys, SUPPORT.text, unit(N, C, seed=8)))
    assert torch.equal(other.zero_shot(QUERIES), cache.zero_shot(QUERIES))
    assert not torch.equal(other.cache_part(QUERIES), cache.cache_part(QUERIES))


def test_ways_to_mix() -> None:
    assert mixed().gate is not None
    torch.manual_seed(0)
    fixed = MixedCache(XMAdapterConfig(CLASSES, K, gamma="fixed", beta=2.7), C, D)
    torch.manual_seed(0)
    query = MixedCache(XMAdapterConfig(CLASSES, K, gamma="per-query", beta=2.7), C, D)
    for cache in (fixed, query):
        cache.build(SUPPORT)
        assert cache.gate is None
    torch.testing.assert_close(fixed.cache_part(QUERIES), mixed().cache_part(QUERIES))
    by_image, by_text = query.affinities(QUERIES)
    image, text = by_image @ ONE_HOT, K * by_text
    share = (image.amax(1) / (image.amax(1) + text.amax(1)))[:, None]
    torch.testing.assert_close(query.cache_part(QUERIES), share * image + (1 - share) * text)


def test_parameter_counts() -> None:
    assert sum(p.numel() for p in mixed().parameters()) == 240 + 272 + 1
    frozen = mixed(freeze_keys=True)
    assert sum(p.numel() for p in frozen.parameters() if p.requires_grad) == 272 + 1
    vit = load("config:clip-vit-base-patch32", weights=False)
    size = {"classes": [f"c{i}" for i in range(1000)], "shots": 16}
    counts = {
        name: summarise(vit, make_config(name, size)).trainable
        for name in ("tip-adapter", "tip-adapter-f", "xmadapter")
    }
    width, inner = 512, 128
    keys = 1000 * 16 * width
    assert counts == {
        "tip-adapter": 0,
        "tip-adapter-f": keys,
        "xmadapter": keys + 2 * (width * inner + inner) + 1,
    }
    # CLIP RN50 has 1,024 channels, which no backbone family here has: the sizes of the note.
    with torch.device("meta"):
        config = XMAdapterConfig(tuple(size["classes"]), 16)
        rn50 = MixedCache(config, 1024, 256)
        tip_f = ClassCache(size["classes"], 16, 1024, 1.0, 1.0, trained_keys=True)
        hundred = MixedCache(XMAdapterConfig(tuple(size["classes"][:100]), 16), 1024, 256)
    assert sum(p.numel() for p in rn50.parameters()) == 16_908_801
    assert sum(p.numel() for n, p in rn50.named_parameters() if n != "keys") == 524_801
    assert sum(p.numel() for p in hundred.parameters()) == 2_163_201
    assert sum(p.numel() for p in tip_f.parameters()) == 16_384_000


def test_views_are_averaged_before_they_are_normalised() -> None:
    views = torch.tensor([[[4.0, 0.0]], [[0.0, 1.0]]])
    torch.testing.assert_close(
        mean_of_views(views), F.normalize(torch.tensor([[2.0, 0.5]]), dim=-1)
    )
    other = F.normalize(F.normalize(views, dim=-1).mean(0), dim=-1)
    assert not torch.allclose(mean_of_views(views), other)


def test_search_grid() -> None:
    beta, alpha = grid(7.0, 200), grid(3.0, 20)
    assert (len(beta), len(alpha)) == (200, 20)
    for values, top in ((beta, 7.0), (alpha, 3.0)):
        assert float(values[0]) == pytest.approx(0.1)
        assert float(values[-1]) < top
        torch.testing.assert_close(
            values.diff(), torch.full_like(values[1:], (top - 0.1) / len(values))
        )


def toy() -> tuple[ClassCache, torch.Tensor, torch.Tensor]:
    """Orthogonal class means with a little noise, and texts of the wrong classes."""
    generator = torch.Generator().manual_seed(0)
    means = torch.eye(C)[:N]
    noisy = lambda count: F.normalize(  # noqa: E731
        means.repeat_interleave(count, 0) + 0.1 * torch.randn(N * count, C, generator=generator),
        dim=-1,
    )
    cache = ClassCache(CLASSES, K, C, alpha=1.0, beta=1.0, trained_keys=True)
    wrong = F.normalize(means + 0.99 * means.roll(1, 0), dim=-1)
    cache.build(Support(noisy(K), F.normalize(0.02 * wrong.roll(1, 0) + torch.eye(C)[N], dim=-1)))
    return cache, noisy(20), torch.arange(N).repeat_interleave(20)


def test_separable_toy_set() -> None:
    cache, images, labels = toy()
    cache.set_sharpness(5.0, 5.5)
    accuracy = lambda logits: float((logits.argmax(1) == labels).double().mean())  # noqa: E731
    assert accuracy(cache.logits(images)) > accuracy(cache.zero_shot(images))
    optimiser = torch.optim.AdamW([cache.keys], lr=1e-2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss, _ = cache.loss(images, labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a", "a"], "shots": 1}, "named twice"),
        ({"classes": ["a", "b"]}, "2 classes with 0 shots"),
        ({"shots": 4}, "0 classes with 4 shots"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"beta": float("nan")}, "beta is nan"),
    ],
)
def test_options_that_make_no_cache(options, message) -> None:
    with pytest.raises(UserError, match=message):
        make_config("tip-adapter", options)


def test_more_options_of_xmadapter() -> None:
    for options in ({"width": 0}, {"gamma": "learnd"}, {"hard_weight": 1.5}):
        with pytest.raises(UserError):
            make_config("xmadapter", options)


def test_examples_of_the_wrong_shape() -> None:
    with pytest.raises(UserError, match="keys have shape"):
        tip().build(Support(SUPPORT.keys[:-1], SUPPORT.text))


def test_start_values_are_those_of_the_released_code() -> None:
    from crossadapt.methods.tip_adapter import start

    assert start(TipAdapterConfig()) == (1.17, 1.0)
