"""The index: recall is measured and reached, with filters too, and never silently low."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import lancedb.index
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.search.making import BIRDS, CARD, clustered, items, listed, name, names, unit

from crossadapt.search import gate, index_plan
from crossadapt.search.card import Card, View
from crossadapt.search.collection import Collection, Collections
from crossadapt.search.exact import Block, blocks, masked, products, scores, top
from crossadapt.search.store.lance import LanceTable

pytestmark = pytest.mark.xdist_group("planner")  # the index is made once per process

COUNT, DIM = 20_000, 64
VECTORS, CLUSTER = clustered(COUNT, DIM, 200)
OTHER = unit(VECTORS + clustered(COUNT, DIM, 200, seed=5)[0])
BUCKET = np.random.default_rng(3).integers(100, size=COUNT)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Collections:
    """20,000 clustered rows with an index, because the exact limit is below."""
    home = Collections(tmp_path_factory.mktemp("store"), exact_limit=1000)
    views = (View("frozen"), View("adapted"))
    card = Card("c", DIM, "tiny", views=views, attributes={"bucket": "int", "cluster": "int"})
    with home.create(card) as collection:
        collection.upsert(
            pa.table(
                {
                    "id": names(np.arange(COUNT)),
                    "attr_bucket": BUCKET,
                    "attr_cluster": CLUSTER,
                    "vector_frozen": listed(OTHER),
                    "vector_adapted": listed(VECTORS),
                }
            )
        )
        collection.maintain(recall=0.95)
    return home


@pytest.fixture
def reader(home: Collections) -> Collection:
    return home.open("c")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with few queries, where the measured value is not what the test is about."""
    monkeypatch.setattr(gate, "QUERIES", 10)


QUERIES = unit(VECTORS[::250] + 0.5 * unit(np.random.default_rng(9).standard_normal((80, DIM))))


def recall(
    reader: Collection, rows: np.ndarray, vectors: np.ndarray = VECTORS, **how: Any
) -> tuple[float, set[str]]:
    """Recall@10 against plain numpy over `rows`, and the plans used."""
    shares, plans = [], set()
    for query in QUERIES:
        best = rows[np.argsort(-(vectors[rows] @ query))[:10]]
        hits = reader.search(query, 10, **how)
        shares.append(len(set(hits.ids) & set(names(best))) / len(best))
        plans.add(hits.plan)
        found = [int(name, 16) for name in hits.ids]
        assert np.isin(found, rows).all()
        np.testing.assert_allclose(hits.scores, vectors[found] @ query, atol=1e-5)
    return float(np.mean(shares)), plans


def test_the_index_reaches_the_recall_it_promises(reader: Collection) -> None:
    stats = reader.stats()
    assert stats["index"] == "IVF_FLAT"
    assert stats["recall"] >= 0.95
    assert (stats["indexed_rows"], stats["unindexed_rows"]) == (COUNT, 0)
    assert stats["index_views"]["adapted"]["probes"] < stats["index_views"]["adapted"]["partitions"]
    share, plans = recall(reader, np.arange(COUNT))
    assert plans == {"index"}
    assert share >= 0.95


def test_a_filter_of_one_percent_loses_nothing(reader: Collection) -> None:
    share, plans = recall(reader, np.flatnonzero(BUCKET == 7), filter="bucket = 7")
    assert plans == {"exact on filtered rows"}
    assert share >= 0.99


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("bucket < 30", np.flatnonzero(BUCKET < 30)),
        ("bucket = 7", np.flatnonzero(BUCKET == 7)),
        ("cluster < 20", np.flatnonzero(CLUSTER < 20)),  # far from most queries
    ],
)
def test_a_filter_through_the_index_probes_until_it_is_right(
    reader: Collection, monkeypatch: pytest.MonkeyPatch, text: str, rows: np.ndarray
) -> None:
    monkeypatch.setattr(index_plan, "FEW", 10)
    share, plans = recall(reader, rows, filter=text)
    assert plans == {"index"}
    assert share >= 0.95


def test_strength_through_the_index_is_scored_exactly(reader: Collection) -> None:
    share, plans = recall(
        reader, np.arange(COUNT), unit((OTHER + VECTORS).astype(np.float64)), strength=0.5
    )
    assert plans == {"index"}
    assert share >= 0.95


@pytest.mark.parametrize("how", [{}, {"filter": "cluster < 20"}, {"strength": 0.5}])
def test_several_queries_get_the_answers_that_each_gets_alone(
    reader: Collection, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    monkeypatch.setattr(index_plan, "FEW", 10)
    together = reader.search(QUERIES[:20], 10, **how)
    for query, found in zip(QUERIES[:20], together, strict=True):
        alone = reader.search(query, 10, **how)
        assert (found.ids, found.plan) == (alone.ids, "index")
        assert found.searched == alone.searched
        np.testing.assert_array_equal(found.scores, alone.scores)


def test_all_parts_are_looked_at_where_there_are_more_than_were_made(
    reader: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LanceDB splits parts that grow."""
    monkeypatch.setattr(index_plan, "FEW", 10)
    for fact in reader._now().index["views"].values():
        monkeypatch.setitem(fact, "partitions", 2)
    share, _ = recall(reader, np.flatnonzero(CLUSTER < 20), filter="cluster < 20")
    assert share == 1.0


def test_exact_can_be_asked_for(reader: Collection) -> None:
    share, plans = recall(reader, np.arange(COUNT), exact=True)
    assert (share, plans) == (1.0, {"exact"})


def test_the_tail_is_searched_reported_and_folded_in(tmp_path: Path, quick: None) -> None:
    home = Collections(tmp_path, exact_limit=100)
    with home.create(CARD) as collection:
        collection.upsert(items(400))
        collection.maintain(recall=0.9)
        collection.upsert(items(30, start=400))
        stats = collection.stats()
        assert (stats["rows"], stats["indexed_rows"], stats["unindexed_rows"]) == (430, 400, 30)
        assert any("30 rows are not in the index" in note for note in stats["notes"])
        late = np.array(items(1, start=420)[BIRDS][0].as_py())
        assert collection.search(late, 1).ids == [name(420)]
        stats = collection.maintain(recall=0.9)["stats"]
        assert (stats["indexed_rows"], stats["unindexed_rows"], stats["notes"]) == (430, 0, [])
        assert collection.search(late, 1).ids == [name(420)]


def test_an_index_that_cannot_reach_the_target_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_recall", lambda *_: 0.8)
    home = Collections(tmp_path, exact_limit=100)
    with home.create(CARD) as collection:
        collection.upsert(items(300))
        done = collection.maintain(recall=0.9)
    view = done["index"]["views"]["frozen"]
    assert (view["met"], view["recall"]) == (False, 0.8)
    assert view["probes"] == view["partitions"]
    assert "finds 80.0% of the nearest" in done["stats"]["notes"][0]


def test_over_the_limit_without_an_index_is_exact_and_said(tmp_path: Path) -> None:
    home = Collections(tmp_path, exact_limit=100)
    with home.create(CARD) as collection:
        collection.upsert(items(300))
        assert collection.search(np.ones(16)).plan == "exact"
        assert "no index" in collection.stats()["notes"][0]
        assert collection.stats()["index"] == "exact"


def test_maintaining_what_has_not_changed_leaves_the_index_as_good(home: Collections) -> None:
    with home.open("c", write=True) as collection:
        before = collection.card.facts["index"]["views"]
        assert collection.maintain(recall=0.95)["index"]["views"] == before


def test_an_index_of_another_kind_is_not_used_and_maintain_replaces_it(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Collections(tmp_path, exact_limit=100)
    with home.create(CARD) as collection:
        collection.upsert(items(300))
        with monkeypatch.context() as earlier:
            earlier.setattr(LanceTable, "index_kind", "IVF_SQ")
            earlier.setattr(lancedb.index, "IvfFlat", lancedb.index.IvfSq)
            assert collection.maintain()["stats"]["index"] == "IVF_SQ"
        assert collection.search(np.ones(16)).plan == "exact"
        assert "maintain" in collection.stats()["notes"][0]
        assert collection.maintain()["stats"]["index"] == "IVF_FLAT"
        assert collection.search(np.ones(16)).plan == "index"


def test_growth_rebuilds_the_index(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PART_ROWS", 50)
    home = Collections(tmp_path, exact_limit=100)
    with home.create(CARD) as collection:
        collection.upsert(items(200))
        small = collection.maintain()["index"]["views"]["frozen"]["partitions"]
        collection.upsert(items(1000))
        grown = collection.maintain()["index"]["views"]["frozen"]["partitions"]
    assert (small, grown) == (4, 20)


def test_other_facts_leave_the_index_alone(tmp_path: Path, quick: None) -> None:
    home = Collections(tmp_path, exact_limit=100)
    with home.create(CARD) as collection:
        collection.upsert(items(200))
        collection.maintain()
        collection.update_card(facts=collection.card.facts | {"calibration": 1})
        assert collection.search(np.ones(16)).plan == "index"


# --- the product itself --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 60), queries=st.integers(1, 4), k=st.integers(1, 70),
    size=st.integers(1, 70), levels=st.integers(1, 5), seed=st.integers(0, 99), data=st.data(),
    threads=st.sampled_from(["1", "3"]),
)  # fmt: skip
def test_top_is_a_sort(
    count: int, queries: int, k: int, size: int, levels: int, seed: int, data: st.DataObject,
    threads: str,
) -> None:  # fmt: skip
    """Few distinct values, so that there are many ties: they stay in the order of the rows."""
    random = np.random.default_rng(seed)
    vectors = random.integers(-levels, levels + 1, (count, 2)).astype(np.float32)
    asked = random.integers(-levels, levels + 1, (queries, 2)).astype(np.float32)
    rows = None
    if data.draw(st.booleans()):
        rows = np.flatnonzero(random.integers(2, size=count))
    parts = blocks(vectors, None, rows, size)
    dense = rows is not None and data.draw(st.booleans())
    if dense:
        parts = masked(blocks(vectors, None, None, size), rows, count)
    with mock.patch.dict(os.environ, OMP_NUM_THREADS=threads):
        found, values = top(asked, parts, k)
    chosen = vectors if rows is None else vectors[rows]
    for query, numbers, best in zip(asked, found, values, strict=True):
        products = chosen @ query
        expected = np.argsort(-products, kind="stable")[:k]
        assert numbers.tolist() == (rows[expected] if dense else expected).tolist()
        np.testing.assert_array_equal(best, products[expected])


@pytest.mark.parametrize("queries", [1, 6, 7])
def test_few_and_many_queries_have_the_same_products(queries: int) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((20_000, 8), np.float32)
    asked = random.standard_normal((queries, 8), np.float32)
    expected = asked.astype(np.float64) @ vectors.T.astype(np.float64)
    np.testing.assert_allclose(products(asked, vectors), expected, atol=1e-4)
    assert products(asked, vectors[:0]).shape == (queries, 0)


def test_opposite_vectors_mix_to_nothing() -> None:
    vectors = unit(np.ones((1, 4)))
    found = scores(vectors, Block(0, vectors, -vectors), 0.5)
    assert found.tolist() == [[0.0]]
