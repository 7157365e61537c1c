"""Reading heads first must find what the plain search finds, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from tests.search.making import BIRDS, CARD, FROZEN, items, listed, vectors

from crossadapt.search import pruning
from crossadapt.search.cache import cached_rows
from crossadapt.search.collection import Collections
from crossadapt.search.exact import blocks, masked, top, unit

COUNT, WIDE = 600, 32


def stretched(seed: int) -> np.ndarray:
    """Vectors that are long in a few directions, with copies, zeros, and rows that nearly tie."""
    random = np.random.default_rng(seed)
    made = random.standard_normal((COUNT, WIDE)) * 0.7 ** np.arange(WIDE)
    made = made @ np.linalg.qr(random.standard_normal((WIDE, WIDE)))[0]
    made = unit(made.astype(np.float32))
    made[50:90] = made[10:50]
    made[100:104] = 0
    made[200:260] = unit(made[200] + 1e-7 * random.standard_normal((60, WIDE)).astype("f"))
    return made


def made_head(rows: np.ndarray, size: int, seed: int = 0) -> pruning.Head:
    """A head in any directions: the bounds hold for every basis."""
    if seed:
        turned = np.linalg.qr(np.random.default_rng(seed).standard_normal((WIDE, WIDE)))[0]
    else:
        turned = np.linalg.eigh(rows.T @ rows)[1][:, ::-1]
    basis = np.ascontiguousarray(turned[:, :size], np.float32)
    lengths: list[float] = []
    parts = list(pruning.heads(rows, basis, lengths.append))
    heads, tails = (np.concatenate(part) for part in zip(*parts, strict=True))
    return pruning.Head(basis, heads, tails, max(lengths))


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e15])
@pytest.mark.parametrize(("size", "directions"), [(4, 0), (16, 0), (31, 0), (8, 5)])
def test_no_plain_score_is_above_its_bound(size, directions, scale):
    rows = stretched(1) * np.float32(scale)
    head = made_head(rows, size, directions)
    for query in [*rows[::60], *vectors(5, 2, WIDE)]:
        # The largest that any order of the float32 sums may give.
        sums = np.abs(rows.astype(float)) @ np.abs(query.astype(float)) * (WIDE + 2) * 2.0**-24
        assert (head.bounds(query) >= rows.astype(float) @ query.astype(float) + sums).all()


def test_a_bound_that_is_lowered_by_its_tail_is_not_one():
    rows = stretched(1)
    head = made_head(rows, 8)
    lower = pruning.Head(head.basis, head.rows, head.tails * 0, head.longest)
    query = rows[3]
    assert (lower.bounds(query) < rows @ query).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_ids_and_scores_are_those_of_the_plain_search(seed, k, share, monkeypatch):
    monkeypatch.setattr(pruning, "_TOO_MANY", 1.0)
    rows = stretched(seed)
    head = made_head(rows, 12)
    counted = np.random.default_rng(seed).random(COUNT) < share
    asked = [rows[20], rows[200], rows[201], *unit(rows[:4] + vectors(4, seed, WIDE))]
    for query in asked:
        found = pruning.best(query, rows, head, k, None if share == 1 else counted)
        assert found is not None
        parts = blocks(rows, None, None, 100)
        if share < 1:
            parts = masked(parts, np.flatnonzero(counted), COUNT)
        (wanted,), (scores,) = top(query[None], parts, k)
        assert found[0].tolist() == wanted.tolist()
        assert found[1].tobytes() == scores.tobytes()


def test_gives_up_where_nothing_is_excluded():
    even = vectors(COUNT, 3, WIDE)
    assert pruning.best(even[0], even, made_head(even, 2), 10) is None
    assert pruning.best(even[0], even, made_head(even, 2), 200) is None  # more than are looked at
    none = np.zeros(COUNT, bool)
    assert pruning.best(even[0], even, made_head(even, 16), 3, none) is None


def test_directions_are_the_fewest_that_exclude_enough(monkeypatch):
    assert pruning.directions(stretched(0)) is None  # too few rows
    monkeypatch.setattr(pruning, "LEAST_ROWS", 100)
    monkeypatch.setattr(pruning, "_PROMISING", 0.2)
    near = unit(vectors(4000, 4, 4) @ vectors(4, 5, WIDE) + 0.01 * vectors(4000, 6, WIDE))
    basis = pruning.directions(near)
    assert basis is not None
    assert basis.shape == (WIDE, WIDE // 8)
    assert pruning.directions(vectors(4000, 7, WIDE)) is None


def test_a_collection_uses_heads_and_finds_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "LEAST_ROWS", 100)
    monkeypatch.setattr(pruning, "_PROMISING", 0.2)
    monkeypatch.setattr(pruning, "_TOO_MANY", 0.5)
    rows = unit(vectors(400, 4, 2) @ vectors(2, 5) + 0.05 * vectors(400, 6))
    table = items(400)
    for column in (FROZEN, BIRDS):
        table = table.set_column(table.schema.get_field_index(column), column, listed(rows))
    queries = unit(rows[:3] + 0.05 * vectors(3, 8))

    def answers(folder: str) -> list:
        monkeypatch.setenv("CROSSADAPT_CACHE", str(tmp_path / folder))
        with Collections(tmp_path / "store").open("c") as collection:
            filters = ("", "flag = true", "year = 2003")
            hits = [h for f in filters for h in collection.search(queries, 5, filter=f)]
            cached = cached_rows(collection.card, collection._now().table)
        return [bool(cached.heads), [(h.ids, h.scores.tobytes(), h.passing) for h in hits]]

    with Collections(tmp_path / "store").create(CARD) as collection:
        collection.upsert(table)
    asked = []
    best = pruning.best
    monkeypatch.setattr(pruning, "best", lambda *a: asked.append(best(*a)) or asked[-1])
    heads, found = answers("with")
    assert heads
    assert sum(one is not None for one in asked) >= 3
    monkeypatch.setattr(pruning, "LEAST_ROWS", 1000)
    heads, plain = answers("without")
    assert not heads
    assert found == plain
