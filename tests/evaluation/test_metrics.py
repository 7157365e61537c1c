from __future__ import annotations

import json

import numpy as np
import pytest

from crossadapt.errors import UserError
from crossadapt.evaluation import (
    METRIC_NAMES,
    TABLE_HEADER,
    VIDEO_PROTOCOLS,
    Protocol,
    RetrievalResult,
    evaluate,
    get_protocol,
    protocol_names,
    register_protocol,
)
from crossadapt.evaluation import protocols as module
from crossadapt.evaluation.protocols import evaluate_scores


def test_identity_is_perfect():
    r = evaluate(np.eye(12), np.eye(12), range(12), range(12))
    assert (r.text_to_image.r1, r.text_to_image.median_rank, r.text_to_image.mean_rank) == (
        100,
        1,
        1,
    )
    assert r.rsum == 600
    assert (r.protocol, r.images, r.texts, r.groups, r.folds) == ("pairs", 12, 12, 12, 1)


def test_hand_computed_ranks():
    # Text i scores images in the order 0, 1, …, 11: the rank of image i is i + 1.
    images = np.arange(12, 0, -1.0)[:, None]
    r = evaluate(images, np.ones((12, 1)), range(12), range(12), similarity="dot")
    t = r.text_to_image
    assert (t.r1, t.r5, t.r10) == pytest.approx((100 / 12, 500 / 12, 1000 / 12))
    assert (t.median_rank, t.mean_rank) == (6.5, 6.5)
    # All texts are equal: each image sees twelve ties, whose middle rank is 6.5.
    i = r.image_to_text
    assert (i.r1, i.r5, i.r10) == (0, 0, 100)
    assert i.optimistic == (100, 100, 100)
    assert i.pessimistic == (0, 0, 0)
    assert i.tie_sensitivity == 100
    assert t.tie_sensitivity == 0


def test_three_images_and_fifteen_captions_by_hand():
    """The rule of Flickr30k and COCO: any of the five captions counts, no text stands for them."""
    owners = np.repeat(np.arange(3), 5)
    scores = np.zeros((15, 3))  # text by image, no two equal
    scores[0:5] = np.array([[9, 2, 1], [8, 3, 1], [1, 7, 2], [2, 6, 1], [5, 4, 3]])
    scores[5:10] = np.array([[4, 5, 6], [6, 5, 4], [3, 9, 1], [7, 4, 2], [8, 3, 1]])
    scores[10:15] = np.array([[6, 5, 4], [7, 6, 5], [9, 8, 3], [4, 5, 3], [9, 8, 6]])
    scores += np.arange(15)[:, None] / 100

    def found(factor):
        return evaluate_scores(
            lambda t, i: factor * scores[np.ix_(t, i)], range(3), owners, similarity="by hand"
        )

    r = found(1.0)
    # Ranks of each text's own image: 1 1 3 2 1, then 2 2 1 2 2, then 3 3 3 3 3.
    assert r.details["text_to_image"].ranks.average.tolist() == [
        1, 1, 3, 2, 1, 2, 2, 1, 2, 2, 3, 3, 3, 3, 3]  # fmt: skip
    assert r.text_to_image.r1 == pytest.approx(100 * 4 / 15)
    assert (r.text_to_image.r5, r.text_to_image.median_rank) == (100, 2)
    assert r.text_to_image.mean_rank == pytest.approx(32 / 15)
    # Image 0: best own caption 9.00; texts 12 (9.12) and 14 (9.14) are above, two although they
    # are of one image. Image 1: 9.07, nothing above. Image 2: 6.14, text 5 (6.05) is below.
    assert r.details["image_to_text"].ranks.average.tolist() == [3, 1, 1]
    assert r.image_to_text.r1 == pytest.approx(100 * 2 / 3)
    assert (r.image_to_text.r5, r.image_to_text.gallery) == (100, 15)
    assert r.rsum == pytest.approx(100 * (4 / 15 + 2 / 3) + 400)
    # A temperature divides all of them alike.
    for temperature in (0.07, 0.5):
        assert found(1 / temperature) == r


def test_an_antidiagonal_matrix_by_hand():
    # Every text prefers the image that mirrors it; its own one comes wherever the row says.
    scores = np.array([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]])
    r = evaluate_scores(lambda t, i: scores[np.ix_(t, i)], range(4), range(4), similarity="x")
    for direction in (r.text_to_image, r.image_to_text):
        assert (direction.r1, direction.r5) == (0, 100)
        assert (direction.median_rank, direction.mean_rank) == (3, 3)
    assert r.details["text_to_image"].ranks.average.tolist() == [4, 2, 4, 2]


def test_record_round_trip_with_and_without_ranks():
    rng = np.random.default_rng(0)
    r = evaluate(rng.normal(size=(6, 3)), rng.normal(size=(12, 3)), "abcdef", "abcdef" * 2)
    for ranks in (False, True):
        back = RetrievalResult.from_dict(json.loads(json.dumps(r.to_dict(ranks=ranks))))
        assert back == r
        assert (back.details is not None) == ranks
    found, own = back.details["image_to_text"], r.details["image_to_text"]
    assert found.ranks.average.tolist() == own.ranks.average.tolist()
    assert found.groups.tolist() == own.groups.tolist()
    with pytest.raises(UserError, match="missing"):
        RetrievalResult.from_dict({"protocol": "pairs"})
    with pytest.raises(UserError, match="unknown"):
        RetrievalResult.from_dict({**r.to_dict(), "extra": 1})


def test_names_and_rows():
    r = evaluate(np.eye(3), np.eye(3), range(3), range(3))
    assert all(isinstance(r.metric(name), float) for name in METRIC_NAMES)
    assert {len(row) for row in r.table_rows()} == {len(TABLE_HEADER)}
    assert r.table_rows()[0][:2] == ("Text → image", "100.0")
    with pytest.raises(UserError, match=r"did you mean 'text_to_image\."):
        r.metric("text_to_image.r2")


def test_protocols_say_what_they_want():
    images = ["coco-1k-folds", "coco-5k", "flickr30k-1k", "pairs"]
    assert protocol_names() == sorted([*images, *VIDEO_PROTOCOLS])
    with pytest.raises(UserError, match="did you mean 'coco-5k'"):
        get_protocol("coco5k")
    eye = np.eye(3)
    for name, wanted in (
        ("flickr30k-1k", "1,000 images"),
        ("coco-5k", "25,010 or 25,000 texts"),
        ("coco-1k-folds", "5,000 images"),
    ):
        with pytest.raises(UserError, match=wanted) as error:
            evaluate(eye, eye, range(3), range(3), name)
        assert "found 3 images in 3 groups and 3 texts" in error.value.where


def test_flickr_wants_five_captions_each():
    images, texts = np.ones((1000, 1)), np.ones((5000, 1))
    owners = np.repeat(np.arange(1000), 5)
    r = evaluate(images, texts, np.arange(1000), owners, "flickr30k-1k")
    assert (r.protocol, r.image_to_text.gallery) == ("flickr30k-1k", 5000)
    owners[0] = 1
    with pytest.raises(UserError, match="exactly 5 captions per image"):
        evaluate(images, texts, np.arange(1000), owners, "flickr30k-1k")


def test_coco_1k_is_the_mean_over_folds_in_file_order(monkeypatch):
    # The rule of the protocol without its size check: five folds of 20 images.
    assert (get_protocol("coco-1k-folds").folds, get_protocol("coco-5k").folds) == (5, 1)
    monkeypatch.setitem(module._PROTOCOLS, "small", Protocol("small", "five folds", folds=5))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(100, 3))
    owners = np.sort(np.r_[np.repeat(np.arange(100), 5), rng.integers(0, 100, 10)])
    texts = images[owners] + 0.3 * rng.normal(size=(510, 3))
    r = evaluate(images, texts, np.arange(100), owners, "small")
    parts = []
    for fold in range(5):
        i = np.arange(fold * 20, fold * 20 + 20)
        t = np.flatnonzero(owners // 20 == fold)
        parts.append(evaluate(images[i], texts[t], i, owners[t]))
    for name in METRIC_NAMES:
        assert r.metric(name) == pytest.approx(np.mean([p.metric(name) for p in parts]))
    assert (r.folds, r.text_to_image.gallery, r.text_to_image.queries) == (5, 20, 510)
    # Ranks per query stand in the order given, not fold by fold.
    last = parts[4].details["text_to_image"].ranks.average
    assert r.details["text_to_image"].ranks.average[-len(last) :].tolist() == last.tolist()


def test_a_text_without_image_is_an_error():
    with pytest.raises(UserError, match="1 of 3 queries have no item of their group"):
        evaluate(np.eye(3)[:2], np.eye(3), [0, 1], [0, 1, 2])


def test_registering_twice_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "_PROTOCOLS", dict(module._PROTOCOLS))
    register_protocol(Protocol("mine", "my rule"))
    assert evaluate(np.eye(2), np.eye(2), range(2), range(2), "mine").protocol == "mine"
    with pytest.raises(UserError, match="already registered"):
        register_protocol(Protocol("mine", "again"))
