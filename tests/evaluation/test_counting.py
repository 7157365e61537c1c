"""Counts out of a product against the definition of a score, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from crossadapt.evaluation import counting, exact_scores
from crossadapt.evaluation.ranks import rank_both, rank_codes


def by_hand(left, right, left_codes, right_codes):
    """Ranks from the full matrix of scores: products in float64, summed exactly, rounded once."""
    scores = (left.astype(np.float64) @ right.T.astype(np.float64)).astype(np.float32)
    own = left_codes[:, None] == right_codes
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    return (1 + (~own & (scores > best)).sum(1)).tolist(), (
        1 + (~own & (scores >= best)).sum(1)
    ).tolist()


def problem(kind: str):
    """Features (float32 texts, float32 images) and group numbers."""
    rng = np.random.default_rng(3)
    texts, images = rng.normal(size=(310, 24)), rng.normal(size=(190, 24))
    codes = rng.permutation(np.resize(np.arange(190), 310)), rng.permutation(190)
    if kind == "nearly level":  # scores that float32 sums cannot tell apart
        texts, images = 1 + 3e-7 * texts, 1 + 3e-7 * images
    elif kind == "whole numbers":  # exact in any order, many ties
        texts, images = np.sign(np.round(texts)), np.sign(np.round(images))
    elif kind == "large groups":
        codes = rng.integers(3, size=310), np.resize(np.arange(3), 190)
    elif kind == "copies":
        texts, images = texts[rng.integers(20, size=310)], images[rng.integers(20, size=190)]
    return texts.astype("f"), images.astype("f"), *codes


KINDS = ("random", "nearly level", "whole numbers", "large groups", "copies")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 5000, 2**20])
@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_both_directions_equal_the_definition(kind, block, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(exact_scores, "_PAIRS", 64)
    monkeypatch.setattr(exact_scores, "_HELD", 100)
    texts, images, text_codes, image_codes = problem(kind)
    forward, backward = rank_both(texts, images, text_codes, image_codes, "dot", block)
    low, high = by_hand(texts, images, text_codes, image_codes)
    assert (forward.optimistic.tolist(), forward.pessimistic.tolist()) == (low, high)
    low, high = by_hand(images, texts, image_codes, text_codes)
    assert (backward.optimistic.tolist(), backward.pessimistic.tolist()) == (low, high)
    alone = rank_codes(images, texts, image_codes, text_codes, "dot", block)
    assert alone.pessimistic.tolist() == high
    if kind in ("whole numbers", "copies"):
        assert low != high


def test_a_product_off_by_what_is_allowed_changes_nothing(monkeypatch):
    # Every rounding error a float32 product may make, at its worst and at random.
    texts, images, text_codes, image_codes = problem("nearly level")
    wanted = rank_both(texts, images, text_codes, image_codes, "dot")
    rng, product = np.random.default_rng(0), np.matmul
    bound = 24 * 2.0**-24 * np.linalg.norm(texts, axis=1).min() * np.linalg.norm(images[0])

    def worse(a, b, out):
        product(a, b, out=out)
        out += (rng.choice([-1, 1], out.shape) * bound * 0.9).astype("f")
        return out

    monkeypatch.setattr(counting.np, "matmul", worse)
    found = rank_both(texts, images, text_codes, image_codes, "dot")
    for side, other in zip(found, wanted, strict=True):
        assert side.optimistic.tolist() == other.optimistic.tolist()
        assert side.pessimistic.tolist() == other.pessimistic.tolist()


def test_block_scores_are_those_of_the_pairs():
    for kind in KINDS:
        texts, images, *_ = problem(kind)
        rows, columns = (part.ravel() for part in np.indices((40, 190)))
        pairs = exact_scores.pair_scores(texts[:40], images, rows, columns)
        assert np.array_equal(exact_scores.block_scores(texts[:40], images).ravel(), pairs)


def test_counts_of_rows_and_columns():
    truth = np.random.default_rng(0).random((counting._PART, counting._COLUMNS)) < 0.99
    assert counting._in_rows(truth).tolist() == truth.sum(1).tolist()
    assert counting._in_columns(truth).tolist() == truth.sum(0).tolist()
    every = np.ones((255, counting._COLUMNS), bool)
    assert set(counting._in_rows(every)) == {counting._COLUMNS}
    assert set(counting._in_columns(every)) == {255}


def test_tiles_strips_and_threads_do_not_change_the_result(monkeypatch):
    texts, images, text_codes, image_codes = problem("nearly level")
    one = rank_both(texts, images, text_codes, image_codes)
    monkeypatch.setattr(counting, "_STRIP", 7)
    monkeypatch.setattr(counting, "_PART", 20)
    monkeypatch.setattr(counting, "_RUN", 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    many = rank_both(texts, images, text_codes, image_codes, block=3000)
    for side, other in zip(one, many, strict=True):
        assert side.optimistic.tolist() == other.optimistic.tolist()
        assert side.pessimistic.tolist() == other.pessimistic.tolist()
