from __future__ import annotations

import numpy as np
import pytest

from crossadapt.errors import UserError
from crossadapt.evaluation import VIDEO_PROTOCOLS, evaluate, get_protocol
from crossadapt.evaluation.protocols import _PROTOCOLS, Protocol
from crossadapt.evaluation.ranks import rank_stripes


def copied_metric(scores: np.ndarray) -> np.ndarray:
    """The rule of the released code, restated: each position whose sorted score equals the
    diagonal's is a rank (from 0)."""
    return np.concatenate(
        [np.flatnonzero(np.sort(row)[::-1] == row[i]) for i, row in enumerate(scores)]
    )


def ours(scores: np.ndarray) -> np.ndarray:
    codes = np.arange(len(scores))
    return rank_stripes(lambda stripe: scores[stripe], codes, codes).average


def test_without_ties_the_copied_metric_agrees() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 50))
    assert (copied_metric(scores) + 1 == ours(scores)).all()


def test_ties_make_the_copied_metric_return_more_ranks_than_queries() -> None:
    scores = np.array([[0.5, 0.5, 0.1], [0.2, 0.9, 0.9], [0.3, 0.2, 0.8]])
    copied = copied_metric(scores)
    # Two queries tie with one other video each: five ranks for three queries.
    assert copied.tolist() == [0, 1, 0, 1, 0]
    assert np.mean(copied < 1) == 3 / 5
    # The right value: ranks 1.5, 1.5 and 1, so one query of three is answered first.
    assert ours(scores).tolist() == [1.5, 1.5, 1.0]
    eye = np.eye(3)
    groups = ["a", "b", "c"]
    found = evaluate(eye, scores, groups, groups).text_to_image  # rows normalised: same order
    assert found.r1 == pytest.approx(100 / 3)
    assert found.median_rank == 1.5
    assert found.mean_rank == pytest.approx(4 / 3)
    assert found.optimistic[0] == 100
    # A model that says the same of everything: the copied rule gives R@1 of 1/3 of nine "ranks".
    assert len(copied_metric(np.ones((3, 3)))) == 9
    assert ours(np.ones((3, 3))).tolist() == [2, 2, 2]


def grouped_by_hand(scores: np.ndarray, text_groups: list[int]) -> list[int]:
    """Video to text: (videos, texts) to the rank of each video's own group by its best text."""
    groups = sorted(set(text_groups))
    best = np.array(
        [
            [max(row[j] for j, t in enumerate(text_groups) if t == g) for g in groups]
            for row in scores
        ]
    )
    return [1 + int((row > row[i]).sum()) for i, row in enumerate(best)]


@pytest.fixture
def any_size(monkeypatch) -> str:
    """The rule of MSVD for sets of any size."""
    rule = Protocol("grouped", "groups of captions", grouped_captions=True)
    monkeypatch.setitem(_PROTOCOLS, rule.name, rule)
    return rule.name


def test_groups_of_captions_against_a_slow_version(any_size) -> None:
    random = np.random.default_rng(1)
    videos = random.normal(size=(12, 6))
    owners = [0, 0, 0, *range(12), 3, 3, 7, 11]
    random.shuffle(owners)
    texts = videos[owners] + random.normal(size=(len(owners), 6)) * 1.2
    found = evaluate(videos, texts, range(12), owners, any_size)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    scores = unit(videos) @ unit(texts).T
    by_hand = grouped_by_hand(scores, owners)
    assert found.details is not None
    assert found.details["image_to_text"].ranks.average.tolist() == by_hand
    assert found.image_to_text.gallery == 12
    assert found.image_to_text.mean_rank == pytest.approx(np.mean(by_hand))
    # Every sentence is a query of its own, against all videos.
    assert found.text_to_image.queries == len(owners)
    plain = evaluate(videos, texts, range(12), owners)
    assert plain.text_to_image == found.text_to_image
    # Ungrouped, several captions of one other video can all stand in front.
    assert plain.image_to_text.mean_rank >= found.image_to_text.mean_rank
    assert plain.image_to_text.gallery == len(owners)


def test_one_sentence_per_video_is_the_diagonal_rule(any_size) -> None:
    random = np.random.default_rng(2)
    videos, texts = random.normal(size=(2, 30, 5))
    assert evaluate(videos, texts, range(30), range(30), any_size).image_to_text == (
        evaluate(videos, texts, range(30), range(30)).image_to_text
    )


@pytest.mark.parametrize("name", VIDEO_PROTOCOLS)
def test_sizes_are_checked(name: str) -> None:
    rule = get_protocol(name)
    wanted = {"msrvtt-full": 2990, "msvd": 670, "didemo": 1004, "activitynet": 4917, "vatex": 1500}
    videos = np.arange(wanted.get(name, 1000))
    texts = np.repeat(videos, 10) if rule.grouped_captions else videos
    assert rule.check is not None
    rule.check(videos, texts)
    for wrong in ((videos[:-1], texts[:-1]), (videos, texts[:-10]), (videos * 0, texts * 0)):
        with pytest.raises(UserError, match=f"{name} wants"):
            rule.check(*wrong)
    if not rule.grouped_captions:
        with pytest.raises(UserError, match="exactly 1 text"):
            rule.check(videos, np.concatenate([texts, texts[:1]]))
