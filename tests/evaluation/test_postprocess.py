from __future__ import annotations

import numpy as np
import pytest

from crossadapt.errors import UserError
from crossadapt.evaluation import evaluate_postprocessed
from crossadapt.evaluation.postprocess import dual_softmax, labelled_rows, query_bank


def test_dual_softmax_by_hand() -> None:
    scores = np.array([[0.6, 0.5], [0.2, 0.4]])
    found = dual_softmax(scores, 10)
    left = 1 / (1 + np.exp(10 * (0.2 - 0.6)))
    right = 1 / (1 + np.exp(10 * (0.4 - 0.5)))
    assert found == pytest.approx(
        np.array([[0.6 * left, 0.5 * right], [0.2 * (1 - left), 0.4 * (1 - right)]])
    )
    # Large temperatures neither overflow nor leave NaN.
    assert np.isfinite(dual_softmax(scores * 1000, 100)).all()


def test_dual_softmax_repairs_a_hub() -> None:
    # Video 0 is near to every text; each text's own video is a little behind it.
    scores = np.array([[0.90, 0.10, 0.10], [0.60, 0.58, 0.10], [0.60, 0.10, 0.58]])
    assert scores.argmax(axis=1).tolist() == [0, 0, 0]
    assert dual_softmax(scores).argmax(axis=1).tolist() == [0, 1, 2]


def test_the_transpose_of_one_direction_leaves_the_other_as_it_was() -> None:
    scores = np.random.default_rng(0).uniform(0.05, 0.4, size=(7, 5))
    transposed = dual_softmax(scores, 20).T
    assert (np.argsort(transposed, axis=1) == np.argsort(scores.T, axis=1)).all()
    own = dual_softmax(scores.T, 20)
    assert (np.argsort(own, axis=1) != np.argsort(scores.T, axis=1)).any()


def test_query_bank_by_hand() -> None:
    scores = np.array([[0.6, 0.5], [0.1, 0.7]])
    bank = np.array([[0.9, 0.1], [0.8, 0.2]])
    static = query_bank(scores, bank, 10, dynamic=False)
    expected = np.exp(10 * scores) / np.exp(10 * bank).sum(axis=0)
    assert np.exp(static) == pytest.approx(expected)
    assert static.argmax(axis=1).tolist() == [1, 1]
    # Only item 0 is a bank query's first hit: the second row stays raw.
    dynamic = query_bank(scores, bank, 10)
    assert dynamic[0] == pytest.approx(static[0])
    assert dynamic[1].tolist() == scores[1].tolist()


def test_rows_are_labelled_and_the_plain_one_is_untouched() -> None:
    random = np.random.default_rng(3)
    videos = random.normal(size=(40, 8))
    hub = random.normal(size=8)
    texts = videos + random.normal(size=(40, 8)) + 1.5 * hub
    videos[0] += 3 * hub
    names = list(range(40))
    banks = {
        "bank_images": random.normal(size=(30, 8)),
        "bank_texts": random.normal(size=(30, 8)) + 1.5 * hub,
    }
    results = evaluate_postprocessed(videos, texts, names, names, **banks)
    assert list(results) == ["plain", "dual softmax", "query bank"]
    assert {r.similarity for r in results.values()} == {
        "cosine",
        "cosine, dual softmax at 100",
        "cosine, query bank at 20",
    }
    plain, dual = results["plain"].text_to_image, results["dual softmax"].text_to_image
    assert dual.r1 > plain.r1
    rows = labelled_rows(results)
    assert [row[0] for row in rows] == ["plain"] * 2 + ["dual softmax"] * 2 + ["query bank"] * 2
    # Each direction has been normalised over its own queries.
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    scores = unit(videos) @ unit(texts).T
    best = dual_softmax(scores).argmax(axis=1) == np.arange(40)
    assert results["dual softmax"].image_to_text.r1 == pytest.approx(100 * best.mean())


def test_bad_requests() -> None:
    eye = np.eye(3)
    for bad in (
        lambda: dual_softmax(eye, 0),
        lambda: query_bank(eye, eye, -1),
        lambda: query_bank(eye, np.eye(4)),
        lambda: evaluate_postprocessed(eye, eye, range(3), range(3), bank_texts=eye),
    ):
        with pytest.raises(UserError):
            bad()
