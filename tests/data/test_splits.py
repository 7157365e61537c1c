from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossadapt.data.splits import assign, canonical, position
from crossadapt.errors import UserError

NAMES = st.lists(st.text(max_size=5), min_size=1, max_size=60)


@settings(deadline=None, max_examples=50)
@given(NAMES, st.integers(0, 5))
def test_a_group_is_never_divided_and_small_sets_are_filled(groups: list[str], seed: int) -> None:
    splits = assign(groups, seed=seed)
    of = dict(zip(groups, splits, strict=True))
    assert [of[group] for group in groups] == splits
    counts = {name: list(of.values()).count(name) for name in ("train", "val", "test")}
    if len(of) >= 6:
        assert min(counts.values()) >= 2
    elif len(of) >= 3:
        assert min(counts.values()) >= 1
    elif len(of) == 2:
        assert counts == {"train": 1, "val": 0, "test": 1}
    else:
        assert counts == {"train": 1, "val": 0, "test": 0}


@settings(deadline=None, max_examples=30)
@given(NAMES)
def test_order_and_repeats_do_not_matter(groups: list[str]) -> None:
    forward = dict(zip(groups, assign(groups), strict=True))
    twice = [*reversed(groups), *groups]
    assert dict(zip(twice, assign(twice), strict=True)) == forward


def test_new_groups_move_nothing_and_shares_are_right() -> None:
    few = assign([f"g{n}" for n in range(500)])
    many = assign([f"g{n}" for n in range(5000)])
    assert many[:500] == few
    assert abs(many.count("train") / 5000 - 0.8) < 0.02
    assert abs(many.count("val") / 5000 - 0.1) < 0.02


def test_values_are_fixed_for_ever() -> None:
    assert position("a", 0) == pytest.approx(0.3715000620239616, abs=1e-12)
    assert [canonical(n) for n in ("restval", " Validation", "dev", "hard")] == [
        "train",
        "val",
        "val",
        "hard",
    ]


def test_fractions_are_checked() -> None:
    with pytest.raises(UserError, match="add up to 1"):
        assign(["a"], fractions={"train": 0.8})
    with pytest.raises(UserError, match="add up to 1"):
        assign(["a"], fractions={"train": 1.5, "test": -0.5})
    assert set(assign(list("abcdefgh"), fractions={"train": 0.5, "val": 0, "test": 0.5})) == {
        "train",
        "test",
    }
