from __future__ import annotations

import numpy as np
import pytest

from crossadapt.errors import UserError
from crossadapt.evaluation import retrieve_examples


def features(noise, captions=1, items=40):
    images = np.random.default_rng(0).normal(size=(items, 12))
    rng = np.random.default_rng(int(10 * noise))
    texts = np.repeat(images, captions, 0)
    return images, texts + noise * rng.normal(size=texts.shape)


def picked(captions=1, before=3.0, after=1.3, **options):
    groups = np.arange(40)
    texts = [f"caption {i}" for i in range(40 * captions)]
    return retrieve_examples(
        features(before, captions),
        features(after, captions),
        groups,
        np.repeat(groups, captions),
        texts,
        **options,
    )


def test_an_honest_mixture_one_query_per_group():
    found = picked(captions=3)
    kinds = [e.kind for e in found]
    assert {k: kinds.count(k) for k in kinds} == {
        "improved": 6,
        "typical": 4,
        "worsened": 2,
        "failure": 4,
    }
    assert len({e.query // 3 for e in found}) == len(found)
    for e in found:
        assert e.text == f"caption {e.query}"
        assert e.answer == e.query // 3
        assert len(e.before) == len(e.after) == 5
        scores = [h.score for h in e.after]
        assert scores == sorted(scores, reverse=True)
        right = [i + 1 for i, h in enumerate(e.after) if h.correct]
        assert right == ([e.rank_after] if e.rank_after <= 5 else [])
        if e.kind == "improved":
            assert e.rank_after < e.rank_before
        if e.kind == "worsened":
            assert e.rank_after > e.rank_before
    assert max(e.rank_after for e in found) == max(
        e.rank_after for e in found if e.kind == "failure"
    )


def test_the_choice_is_repeatable():
    assert picked() == picked()


def test_a_perfect_model_has_no_failures_and_no_change_no_gains():
    perfect = picked(before=0, after=0)
    assert {e.kind for e in perfect} == {"typical"}
    # All ranks are equal: the typical ones come from all over the file.
    assert [e.query for e in perfect] == [0, 13, 26, 39]


def test_few_items_and_no_wishes():
    eye = np.eye(2)
    found = retrieve_examples((eye, eye), (eye, eye), "ab", "ab", ["a", "b"], top=5)
    assert [len(e.after) for e in found] == [2, 2]
    assert picked(improved=0, typical=0, worsened=0, failures=0) == []


def test_mismatches_are_named():
    eye = np.eye(3)
    with pytest.raises(UserError, match="do not describe the same items"):
        retrieve_examples((eye, eye), (eye[:2], eye), range(3), range(3), "abc")
    with pytest.raises(UserError, match="image features after hold NaN"):
        retrieve_examples((eye, eye), (eye * np.nan, eye), range(3), range(3), "abc")
    with pytest.raises(UserError, match="top must be"):
        picked(top=0)
