"""Re-ranking against a brute-force version: shortlist, logits, what is outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import small_run

from crossadapt.adapters.attach import attach
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import tiny
from crossadapt.backbones.blip import MATCH
from crossadapt.backbones.precision import choose_precision
from crossadapt.errors import UserError
from crossadapt.evaluation.protocols import evaluate, evaluate_scores
from crossadapt.tasks import rerank as rerank_module
from crossadapt.tasks.held_out import HeldOut
from crossadapt.tasks.rerank import OUTSIDE, PairMatcher, Rerank, reranked, shortlist, two_stage

COUNT = 12


@pytest.fixture(scope="module")
def world():
    """A backbone, held-out rows, unit features of both sides, and every match logit (N, M)."""
    backbone = tiny("blip", seed=2)
    attach(backbone, make_config("uniadapter", {"r": 4, "init": "released"}))
    held_out = HeldOut(backbone, small_run.manifest(COUNT, captions=2), small_run.pixels(COUNT),
                       choose_precision("fp32"))  # fmt: skip
    images, texts = held_out.encode(backbone)
    pixels = backbone.preprocess.normalise(torch.from_numpy(small_run.pixels(COUNT)))
    ids, mask = held_out.tokens.ids, held_out.tokens.mask
    with torch.inference_mode():
        seen = backbone.encode_image_tokens(pixels)
        rows = [backbone.match(ids, mask, one.expand(len(ids), -1, -1))[:, MATCH] for one in seen]
    return backbone, held_out, images, texts, torch.stack(rows).numpy()


def matcher_of(world) -> PairMatcher:
    backbone, held_out, *_ = world
    return PairMatcher(backbone, held_out.pixels, held_out.tokens, held_out.precision)


@pytest.mark.parametrize("blocks", [(32, 128), (2, 5)])
def test_any_pairs_in_any_order(world, blocks, monkeypatch):
    monkeypatch.setattr(rerank_module, "_PICTURES", blocks[0])
    monkeypatch.setattr(rerank_module, "_PAIRS", blocks[1])
    random = np.random.default_rng(0)
    images, texts = random.integers(0, COUNT, 50), random.integers(0, 2 * COUNT, 50)
    matcher = matcher_of(world)
    np.testing.assert_allclose(matcher(images, texts), world[4][images, texts], atol=1e-5)
    assert matcher.pairs == 50


def test_what_is_outside_the_shortlist_has_the_released_score(world):
    """-100, whatever the pair's own logit: neither stage can bring it back."""
    _, _, images, texts, _ = world
    scores = two_stage(images.numpy(), texts.numpy(), matcher_of(world), Rerank(2))
    found = scores["text_to_image"](np.arange(2 * COUNT), np.arange(COUNT))
    assert ((found == -100).sum(1) == COUNT - 2).all()


def test_shortlist_holds_the_nearest_first_come_first_on_ties():
    cosines = np.array([[0.1, 0.5, 0.5, 0.2]], np.float32)
    assert shortlist(cosines, 3).tolist() == [[1, 2, 3]]
    assert shortlist(cosines, 9).shape == (1, 4)


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 4])
def test_scores_by_brute_force(world, k, weight):
    _, _, images, texts, logits = world
    cosines = (images @ texts.T).numpy()
    scores = two_stage(images.numpy(), texts.numpy(), matcher_of(world), Rerank(k, weight))
    text_rows, image_rows = np.array([3, 20, 7]), np.arange(2, COUNT)
    found = scores["text_to_image"](text_rows, image_rows)
    for i, t in enumerate(text_rows):
        near = set(sorted(image_rows, key=lambda n: -cosines[n, t])[:k])
        for j, n in enumerate(image_rows):
            wanted = logits[n, t] + weight * cosines[n, t] if n in near else OUTSIDE
            assert found[i, j] == pytest.approx(wanted, abs=1e-4)
    found = scores["image_to_text"](np.arange(2 * COUNT), np.array([5, 0]))
    for j, n in enumerate((5, 0)):
        near = set(sorted(range(2 * COUNT), key=lambda t: -cosines[n, t])[:k])
        for t in range(2 * COUNT):
            wanted = logits[n, t] + weight * cosines[n, t] if t in near else OUTSIDE
            assert found[t, j] == pytest.approx(wanted, abs=1e-4)


def test_a_shortlist_of_everything_is_full_scoring(world):
    backbone, held_out, images, texts, logits = world
    found = reranked(backbone, held_out, images, texts, Rerank(1000))
    full = evaluate_scores(
        lambda t, i: logits[np.ix_(i, t)].T, *held_out.sides(), similarity="all pairs"
    )
    assert found.result.text_to_image == full.text_to_image
    assert found.result.image_to_text == full.image_to_text
    assert found.pairs == 2 * logits.size


def test_a_shortlist_of_one_keeps_the_first_place(world):
    backbone, held_out, images, texts, _ = world
    found = reranked(backbone, held_out, images, texts, Rerank(1))
    plain = evaluate(images, texts, *held_out.sides())
    assert found.result.text_to_image.r1 == plain.text_to_image.r1
    assert found.result.image_to_text.r1 == plain.image_to_text.r1
    assert found.pairs == 3 * COUNT


def test_the_cost_is_stated(world):
    backbone, held_out, images, texts, _ = world
    found = reranked(backbone, held_out, images, texts, Rerank(3))
    assert found.seconds > 0
    queries = 3 * COUNT
    assert found.ms_per_query == pytest.approx(1000 * found.seconds / queries)
    assert found.to_dict()["k"] == 3
    assert found.to_dict()["ms_per_query"] == found.ms_per_query


def test_refusals(world):
    with pytest.raises(UserError, match="fusion tower"):
        PairMatcher(tiny("clip"), small_run.pixels(), world[1].tokens)
    with pytest.raises(UserError, match="shortlist of 0"):
        Rerank(0)
    with pytest.raises(UserError, match="weight"):
        Rerank(3, float("nan"))
