from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossadapt.data import Manifest, PairSampler
from crossadapt.errors import UserError


def manifest(captions: list[int], items_per_group: int = 1) -> Manifest:
    rows = [
        {"item": f"/{item}", "text": f"{item} {n}", "group": f"g{item // items_per_group}"}
        for item, count in enumerate(captions)
        for n in range(count)
    ]
    return Manifest.from_rows(rows)


COUNTS = st.lists(st.integers(1, 5), min_size=2, max_size=30)


@settings(deadline=None, max_examples=60)
@given(COUNTS, st.integers(1, 8), st.sampled_from(["one", "all"]), st.booleans(), st.data())
def test_invariants(counts, half, captions, drop, data) -> None:
    table = manifest(counts, data.draw(st.integers(1, 2)))
    world = data.draw(st.sampled_from([1, 2]))
    options = {"seed": 3, "captions": captions, "drop_last": drop, "world": world}
    ranks = [PairSampler(table, 2 * half, rank=rank, **options) for rank in range(world)]
    for epoch in (0, 1):
        batches = [list(rank.batches(epoch)) for rank in ranks]
        assert {len(part) for part in batches} == {len(ranks[0])}
        whole = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
        for index, parts in enumerate(zip(*batches, strict=True)):
            assert len({len(part) for part in parts}) == 1
            assert len(whole[index]) >= 2
            assert whole[index].tolist() == ranks[0].global_batch(epoch, index).tolist()
        rows = np.concatenate(whole)
        assert len(set(rows.tolist())) == len(rows)
        used = len(counts) if captions == "one" else sum(counts)
        assert len(rows) == ranks[0].rows if not drop and world == 1 else len(rows) <= used
        if captions == "one":
            items = table.item_index[rows]
            assert len(set(items.tolist())) == len(items)
            if table.item_groups.max() + 1 == len(counts):
                assert all(len(set(table.groups[b])) == len(b) for b in whole)
        if not drop:
            assert used - len(rows) < world


def test_groups_are_kept_apart() -> None:
    table = manifest([5] * 64)
    for epoch in range(5):
        for batch in PairSampler(table, 16, captions="all").batches(epoch):
            assert len(set(table.groups[batch].tolist())) == len(batch) == 16


def test_a_giant_group_is_spread() -> None:
    table = manifest([40] + [1] * 40)
    batches = list(PairSampler(table, 8, captions="all").batches(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(80))
    assert all(len(set(table.groups[batch].tolist())) >= 2 for batch in batches[:-1])


def test_epochs_differ_and_resume_is_exact() -> None:
    table = manifest([3] * 20)
    sampler = PairSampler(table, 4, seed=9)
    first, second = (np.concatenate(list(sampler.batches(e))) for e in (0, 1))
    assert first.tolist() != second.tolist()
    resumed = list(PairSampler(table, 4, seed=9).batches(1, start=3))
    assert np.concatenate(resumed).tolist() == second[12:].tolist()
    assert set((first % 3).tolist()) == {0, 1, 2}


def test_sizes() -> None:
    def sizes(items: int, batch: int, **options) -> list[int]:
        sampler = PairSampler(manifest([1] * items), batch, **options)
        return [len(batch) for batch in sampler.batches(0)]

    assert sizes(9, 4) == [4, 5]
    assert sizes(10, 4) == [4, 4, 2]
    assert sizes(10, 4, drop_last=True) == [4, 4]
    assert sizes(3, 4, drop_last=True) == [3]
    assert sizes(11, 4, world=2) == [2, 2, 1]
    assert sizes(9, 4, world=2) == [2, 2]


def test_refusals() -> None:
    table = manifest([1, 1, 1])
    for options, message in (
        ({"batch_size": 1}, "batch of 1"),
        ({"batch_size": 3, "world": 2}, "batch of 3 over 2"),
        ({"batch_size": 4, "captions": "some"}, "captions='some'"),
        ({"batch_size": 4, "world": 4}, "only 3"),
    ):
        with pytest.raises(UserError, match=message):
            PairSampler(table, **options)
    with pytest.raises(UserError, match="only 1"):
        PairSampler(manifest([5]), 4)
