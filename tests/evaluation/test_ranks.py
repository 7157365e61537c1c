from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation import reference

from crossadapt.errors import UserError
from crossadapt.evaluation import counting, rank


@st.composite
def problems(draw):
    """Whole-number features (exact in float32, many ties), several items on both sides."""
    groups = draw(st.integers(1, 5))
    width = draw(st.integers(1, 3))

    def side():
        names = draw(st.lists(st.integers(0, groups - 1), max_size=9)) + list(range(groups))
        rows = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
        return draw(st.lists(rows, min_size=len(names), max_size=len(names))), names

    return (*side(), *side())


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(1, 60))
def test_blocks_equal_brute_force(problem, block):
    queries, query_groups, gallery, gallery_groups = problem
    scores = np.array(queries) @ np.array(gallery).T
    low, high = reference.ranks(scores, query_groups, gallery_groups)
    found = rank(queries, gallery, query_groups, gallery_groups, similarity="dot", block=block)
    assert found.optimistic.tolist() == low
    assert found.pessimistic.tolist() == high
    assert found.average.tolist() == [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    assert low == reference.minimum_over_own(scores, query_groups, gallery_groups)


@pytest.mark.parametrize("block", [1, 130, 10_000])
def test_five_captions_and_cosine_equal_brute_force(block):
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(13, 8)), rng.normal(size=(65, 8))
    groups = [f"g{i}" for i in range(13)]
    owners = [groups[i] for i in rng.permutation(np.repeat(np.arange(13), 5))]
    for q, qg, g, gg in ((images, groups, texts, owners), (texts, owners, images, groups)):
        low, high = reference.ranks(reference.cosine(q, g), qg, gg)
        found = rank(torch.tensor(q), torch.tensor(g), qg, gg, block=block)
        assert found.optimistic.tolist() == low
        assert found.pessimistic.tolist() == high == low


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("block", [1, 3000, 2**20])
def test_equal_items_are_ties_wherever_they_stand(similarity, block):
    # Real-valued features of an awkward width: a product may round equal columns differently.
    rng = np.random.default_rng(1)
    distinct = rng.normal(size=(37, 53)).astype("f")
    copies = 9
    gallery = np.concatenate([distinct] * copies)[rng.permutation(37 * copies)]
    names = [f"item {i}" for i in range(len(gallery))]
    found = rank(
        rng.normal(size=(len(gallery), 53)),
        gallery,
        names,
        names,
        similarity=similarity,
        block=block,
    )
    assert (found.pessimistic - found.optimistic == copies - 1).all()
    assert ((found.optimistic - 1) % copies == 0).all()


def test_signed_zero_does_not_break_a_tie():
    found = rank([[1.0, 1.0]], [[0.0, 1.0], [-0.0, 1.0]], ["a"], ["a", "b"])
    assert (found.optimistic[0], found.pessimistic[0], found.average[0]) == (1, 2, 1.5)


def test_constant_features_win_nothing():
    found = rank(np.ones((4, 3)), np.ones((4, 3)), range(4), range(4))
    assert found.average.tolist() == [2.5] * 4


def test_monotone_scaling_of_a_query_keeps_its_rank():
    rng = np.random.default_rng(2)
    q, g = rng.integers(-3, 4, (6, 4)), rng.integers(-3, 4, (6, 4))
    a = rank(q, g, range(6), range(6), similarity="dot")
    b = rank(q * 8, g, range(6), range(6), similarity="dot")
    assert a.pessimistic.tolist() == b.pessimistic.tolist()


def test_never_holds_the_full_matrix(monkeypatch):
    sizes, product = [], np.matmul
    monkeypatch.setattr(
        counting.np, "matmul", lambda a, b, out: sizes.append(out.size) or product(a, b, out=out)
    )
    eye = np.eye(400)
    assert rank(eye, eye, range(400), range(400), block=2000).average.tolist() == [1.0] * 400
    assert sum(sizes) == 400 * 400
    assert max(sizes) <= 2000


def test_bfloat16_and_gradients_are_welcome():
    eye = torch.eye(3, dtype=torch.bfloat16, requires_grad=True)
    groups = torch.arange(3)
    assert rank(eye, eye, groups, groups).average.tolist() == [1, 1, 1]


EYE = np.eye(2)
BAD = {
    "NaN or infinity in 1 of 2": {"query": [[1, float("nan")], [0, 1]]},
    "gallery features hold NaN": {"gallery": [[1, 0], [float("inf"), 1]]},
    "non-empty matrix": {"query": np.zeros((0, 2))},
    "not numbers": {"query": [["a", "b"]]},
    "different widths": {"gallery": np.eye(3), "gallery_groups": [0, 1, 2]},
    "do not match the features": {"query_groups": [0]},
    "must be strings or numbers": {"query_groups": [[0], [1]]},
    "1 of 2 queries have no item": {"query_groups": [0, "1"]},
    "row of zeros": {"query": [[0, 0], [0, 1]]},
    "unknown similarity": {"similarity": "euclid"},
    "block must be": {"block": 0},
    "too large for a float32": {"query": EYE * 1e30, "gallery": EYE * 1e30, "similarity": "dot"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    call = {"query": EYE, "gallery": EYE, "query_groups": [0, 1], "gallery_groups": [0, 1]}
    with pytest.raises(UserError, match=message):
        rank(**(call | BAD[message]))


def test_evaluation_imports_neither_torch_nor_matplotlib():
    code = "import sys, crossadapt.evaluation; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
