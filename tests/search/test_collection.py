"""Collections: what is stored comes back, and a search is what plain numpy says it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.search.making import CARD, DIM, FROZEN, items, listed, name, names, unit, vectors

from crossadapt.errors import UserError
from crossadapt.search.card import View
from crossadapt.search.collection import Collection, Collections

COUNT = 200


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Collections:
    made = Collections(tmp_path_factory.mktemp("store"))
    with made.create(CARD) as collection:
        collection.upsert(items(COUNT))
    return made


@pytest.fixture(scope="module", params=["in memory", "from the store"])
def reader(request: pytest.FixtureRequest, collections: Collections) -> Collection:
    """Exact search over cached vectors, and the same over blocks read from the store."""
    limit = 10**6 if request.param == "in memory" else 0
    return Collections(collections.uri, exact_limit=limit).open("c")


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Collection]:
    with Collections(tmp_path / "store").create(CARD) as collection:
        collection.upsert(items(50))
        yield collection


def mixed(strength: float) -> np.ndarray:
    frozen, birds = vectors(COUNT, 1), vectors(COUNT, 2)
    return unit((1 - strength) * frozen.astype(np.float64) + strength * birds)


PASSING = {
    "": np.arange(COUNT),
    "colour = 'red'": np.arange(0, COUNT, 4),
    "year >= 2010 and not flag": np.array([n for n in range(COUNT) if n % 20 >= 10 and n % 2]),
    "colour is null or price < 3": np.array([n for n in range(COUNT) if n % 4 == 3 or n < 6]),
    "width in (105, 150, 9)": np.array([5, 50]),
}


@pytest.mark.parametrize("text", PASSING)
@pytest.mark.parametrize("strength", [1.0, 0.7, 0.5, 0.0])
def test_search_is_brute_force(reader: Collection, text: str, strength: float) -> None:
    queries = vectors(3, 7)
    rows = PASSING[text]
    expected = queries @ mixed(strength)[rows].T
    found = reader.search(queries * 5, 12, strength=strength, filter=text)
    for hits, row in zip(found, expected, strict=True):
        best = np.argsort(-row)[:12]
        assert hits.ids == names(rows[best])
        np.testing.assert_allclose(hits.scores, row[best], atol=2e-6)
        assert hits.plan == ("exact on filtered rows" if text else "exact")
        assert (hits.searched, hits.passing) == (len(rows), len(rows))
    one = reader.search(queries[0], 12, strength=strength, filter=text)
    assert one.ids == found[0].ids


@pytest.mark.parametrize("view", ["frozen", "birds-v1.2", None])
def test_each_view_is_searched_with_its_own_vectors(reader: Collection, view: str | None) -> None:
    seed = 1 if view == "frozen" else 2
    hits = reader.search(vectors(COUNT, seed)[17], 1, view=view)
    assert hits.ids == [name(17)]
    assert hits.scores[0] == pytest.approx(1, abs=1e-6)


def test_scores_and_ranks_are_brute_force(reader: Collection) -> None:
    query, text = vectors(2, 8), "flag"
    products = query @ vectors(COUNT, 2).T
    blocks = list(reader.scores(query))
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), products, atol=1e-6)
    rows = np.arange(0, COUNT, 2)
    ranks = reader.rank_of(query[0], [name(4), name(5), name(90), "unknown"], filter=text)
    order = rows[np.argsort(-products[0, rows])].tolist()
    assert ranks == {name(4): order.index(4) + 1, name(90): order.index(90) + 1}


def test_more_than_there_are(reader: Collection) -> None:
    assert len(reader.search(vectors(1)[0], 1000).ids) == COUNT
    none = reader.search(vectors(1)[0], 5, filter="year > 3000")
    assert (none.ids, len(none.scores), none.passing) == ([], 0, 0)


def test_get_keeps_the_order_asked(reader: Collection) -> None:
    asked = [name(9), "nobody", name(3), name(9)]
    found = reader.get(asked)
    assert found["item"].to_pylist() == ["photos/9.jpg", "photos/3.jpg", "photos/9.jpg"]
    assert "thumbnail" not in found.column_names
    assert not any(column.startswith("vector_") for column in found.column_names)
    assert reader.get([name(1)], [FROZEN, "texts"]).column_names == [FROZEN, "texts"]
    assert reader.get(["nobody"]).num_rows == 0
    assert reader.get([]).num_rows == 0


def test_scan_yields_the_rows_that_pass(reader: Collection) -> None:
    found = pa.Table.from_batches(reader.scan(["id", "attr_year"], "year = 2003"))
    assert sorted(found["id"].to_pylist()) == names(range(3, COUNT, 20))
    assert set(found["attr_year"].to_pylist()) == {2003}


def test_facets_count_what_passes(reader: Collection) -> None:
    facets = reader.facets()
    assert facets["colour"] == [("blue", 50), ("green", 50), ("red", 50)]
    assert facets["kind"] == [("image", COUNT)]
    assert "price" not in facets
    some = reader.facets(["flag", "year", "colour"], "width < 106", limit=2)
    assert some["flag"] == [(False, 3), (True, 3)]
    assert len(some["year"]) == 2
    assert some["colour"] == [("green", 2), ("red", 2)]
    assert reader.facets([]) == {}
    with pytest.raises(UserError, match="no column 'color'") as error:
        reader.facets(["color"])
    assert "colour" in error.value.fix


def test_stats_say_what_there_is(reader: Collection) -> None:
    stats = reader.stats()
    assert (stats["rows"], stats["dim"], stats["recall"]) == (COUNT, DIM, 1.0)
    assert stats["bytes"] > COUNT * DIM * 4 * 2
    assert [view["name"] for view in stats["views"]] == ["frozen", "birds-v1.2"]
    assert stats["views"][1]["fingerprint"] == "hash-birds"
    assert stats["version"] == reader.version
    json.dumps(stats)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"k": 0}, "k is 0"),
        ({"view": "bird"}, "no view 'bird'"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": float("nan")}, "strength"),
        ({"vector": np.ones(7)}, "shape"),
        ({"vector": np.zeros(DIM)}, "zero"),
        ({"vector": np.full(DIM, np.nan)}, "not finite"),
        ({"filter": "colr = 'red'"}, "colr"),
        ({"filter": "vector_frozen is null"}, "names no column"),
    ],
)
def test_a_wrong_search_is_refused(reader: Collection, wrong: dict[str, Any], what: str) -> None:
    arguments: dict[str, Any] = {"vector": np.ones(DIM)} | wrong
    with pytest.raises(UserError, match=what):
        reader.search(**arguments)


def test_a_reader_sees_writes_after_refresh(writer: Collection) -> None:
    reader = Collections(writer._home.uri).open("c")
    query = vectors(61, 2)[60]
    before = reader.search(query, 1)
    assert not reader.refresh()
    writer.upsert(items(11, start=50))
    writer.delete([name(0), "nobody"])
    assert writer.search(query, 1).ids == [name(60)]
    assert reader.search(query, 1).ids == before.ids != [name(60)]
    assert reader.refresh()
    assert reader.search(query, 1).ids == [name(60)]
    assert (len(reader), reader.version) == (60, writer.version)
    assert not reader.refresh()


def test_dropped_and_made_again_is_another_collection(tmp_path: Path) -> None:
    home = Collections(tmp_path)
    for seed in (2, 3):
        with home.create(CARD.changed(views=(View("frozen"),))) as collection:
            collection.upsert(pa.table({"id": names(range(9)), FROZEN: listed(vectors(9, seed))}))
        assert home.open("c").search(vectors(9, seed)[4], 1).scores[0] == pytest.approx(1)
        home.drop("c")
    assert home.names() == []


def test_a_warm_open_reads_nothing_from_the_store(
    collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossadapt.search.store.lance import LanceTable

    collections.open("c").search(vectors(1)[0], 3)
    monkeypatch.setattr(LanceTable, "scan", lambda *_: pytest.fail("the store was read"))
    fresh = Collections(collections.uri).open("c")
    assert len(fresh.search(vectors(1)[0], 3, filter="flag", strength=0.5).ids) == 3
    assert fresh.facets()["kind"] == [("image", COUNT)]


def test_a_damaged_cache_is_made_again(writer: Collection) -> None:
    from crossadapt.search.cache import folder_of

    expected = writer.search(vectors(1)[0], 5)
    folder = folder_of(writer.card, writer.version)
    for damage in ("ready.json", "frozen.f32", "rows.arrow"):
        (folder / damage).write_bytes(b"{")
        fresh = Collections(writer._home.uri).open("c")
        assert fresh.search(vectors(1)[0], 5).ids == expected.ids


def test_changing_the_card_keeps_the_cache(
    writer: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossadapt.search import cache

    before = writer.search(vectors(1)[0], 5)
    monkeypatch.setattr(cache, "_build", lambda *_: pytest.fail("read again"))
    writer.update_card(facts={"calibration": [1, 2]}, precision="bf16")
    assert writer.search(vectors(1)[0], 5).ids == before.ids
    again = Collections(writer._home.uri).open("c")
    assert (again.card.facts, again.card.precision) == ({"calibration": [1, 2]}, "bf16")


def test_an_empty_collection_can_be_searched(tmp_path: Path) -> None:
    home = Collections(tmp_path)
    home.create(CARD).close()
    collection = home.open("c")
    assert collection.search(vectors(1)[0]).ids == []
    assert collection.search(vectors(2), strength=0.5, filter="flag")[1].ids == []
    assert collection.facets() == {"kind": [], "colour": [], "year": [], "flag": []}
    assert list(collection.scores(vectors(1))) == []
    assert collection.stats()["rows"] == 0


def test_only_a_writer_writes(collections: Collections) -> None:
    reader = collections.open("c")
    for write in (
        lambda: reader.upsert(items(1)),
        lambda: reader.delete([name(1)]),
        lambda: reader.update_card(precision="x"),
        reader.maintain,
    ):
        with pytest.raises(UserError, match="for reading only"):
            write()


def test_other_models_are_refused_with_the_command(collections: Collections) -> None:
    reader = collections.open("c")
    reader.require({"frozen": "hash-frozen", "birds-v1.2": "hash-birds"})
    with pytest.raises(UserError, match="another adapter") as error:
        reader.require({"birds-v1.2": "other"})
    assert error.value.fix == (
        "embed it again: crossadapt index PATH --collection c --adapter runs/birds "
        f"--backbone tiny:clip --store {collections.uri}"
    )
    with pytest.raises(UserError, match="another model"):
        reader.require({"frozen": "other"})
    with pytest.raises(UserError, match="no vectors of 'cars'") as error:
        reader.require({"cars": "x"})
    assert "--adapter cars" in error.value.fix


def test_the_command_names_what_was_indexed(writer: Collection) -> None:
    writer.update_card(facts={"sources": ["my photos", "more"]})
    with pytest.raises(UserError) as error:
        writer.require({"frozen": "other"})
    assert "crossadapt index 'my photos' more --collection c --backbone" in error.value.fix
