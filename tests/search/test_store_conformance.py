"""What every engine has to do. A new one is added to `STORES` and has to pass all of it.

LanceDB runs twice: in a folder, and in an object store (a local S3 server).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from crossadapt.errors import UserError
from crossadapt.search.card import Card
from crossadapt.search.filters import Compare, id_condition
from crossadapt.search.store.lance import LanceStore
from crossadapt.search.store.protocol import CollectionStore, StoredTable

DIM = 16
CARD = Card("c", DIM, "tiny", attributes={"year": "int", "name": "string"})
STORES = ["lance-folder", "lance-s3"]
Open = Callable[[], CollectionStore]


@pytest.fixture(params=STORES)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Makes another client of the same place, as another process would."""
    if request.param == "lance-s3":
        options = request.getfixturevalue("bucket")
        uri = f"s3://bucket/{tmp_path.name}"
        return lambda: LanceStore(uri, options)
    return lambda: LanceStore(tmp_path / "store")


@pytest.fixture
def store(opener: Open) -> CollectionStore:
    return opener()


@pytest.fixture
def table(store: CollectionStore) -> StoredTable:
    table = store.create("c", CARD.schema, CARD.to_json())
    table.upsert(rows(range(20)))
    return table


def vectors(numbers: range, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((numbers.stop, DIM), np.float32)
    return (made / np.linalg.norm(made, axis=1, keepdims=True))[numbers.start :]


def listed(made: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(made.ravel()), made.shape[1])


def rows(numbers: range, seed: int = 0) -> pa.Table:
    return pa.table(
        {
            "id": [f"{n:032x}" for n in numbers],
            "texts": [[f"text {n}", "it's"] for n in numbers],
            "thumbnail": [bytes([n % 256, 0, 255]) for n in numbers],
            "attr_year": list(range(numbers.start, numbers.stop)),
            "vector_frozen": listed(vectors(numbers, seed)),
        },
        pa.schema([CARD.schema.field(name) for name in
                   ("id", "texts", "thumbnail", "attr_year", "vector_frozen")]),
    )  # fmt: skip


def whole(part: pa.Table) -> pa.Table:
    """With every column, those it did not have empty."""
    columns = {name: part[name] for name in part.schema.names}
    return pa.table(
        [columns.get(f.name, pa.nulls(len(part), f.type)) for f in CARD.schema], schema=CARD.schema
    )


def ids(table: StoredTable, where: Compare | None = None) -> list[int]:
    return [int(i, 16) for b in table.scan(["id"], where) for i in b.column("id").to_pylist()]


def test_a_new_collection_is_there_and_empty(store: CollectionStore, opener: Open) -> None:
    assert store.names() == []
    store.create("b.2-x_y", CARD.schema, CARD.to_json())
    store.create("a", CARD.schema, "{}")
    other = opener()
    assert other.names() == ["a", "b.2-x_y"]
    table = other.open("b.2-x_y")
    assert table.schema.names == CARD.schema.names
    assert Card.from_json(table.read_card()) == CARD
    assert (table.count(), ids(table)) == (0, [])


def test_names_are_taken_once_and_unknown_ones_are_said(store: CollectionStore) -> None:
    with pytest.raises(UserError, match="no collection 'shoes'"):
        store.open("shoes")
    store.create("shoes", CARD.schema, "{}")
    with pytest.raises(UserError, match="already"):
        store.create("shoes", CARD.schema, "{}")
    with pytest.raises(UserError) as error:
        store.open("shoe")
    assert "'shoes'" in error.value.fix


def test_drop_forgets_everything(store: CollectionStore, table: StoredTable, opener: Open) -> None:
    store.drop("c")
    assert opener().names() == []
    again = store.create("c", CARD.schema, "{}")
    assert (again.count(), again.read_card()) == (0, "{}")


def test_rows_come_back_as_they_were(table: StoredTable) -> None:
    found = pa.Table.from_batches(table.scan(CARD.schema.names)).sort_by("id")
    assert found.select(rows(range(20)).schema.names).equals(rows(range(20)))
    assert found["attr_name"].null_count == 20


def test_upsert_replaces_by_id_and_inserts(table: StoredTable) -> None:
    table.upsert(rows(range(15, 25), seed=1))
    assert sorted(ids(table)) == list(range(25))
    found = pa.Table.from_batches(table.scan(["id", "vector_frozen"])).sort_by("id")
    stored = np.array(found["vector_frozen"].to_pylist(), np.float32)
    np.testing.assert_array_equal(stored[:15], vectors(range(15)))
    np.testing.assert_array_equal(stored[15:], vectors(range(15, 25), seed=1))


def test_columns_left_out_of_an_upsert_keep_their_value(table: StoredTable) -> None:
    table.upsert(pa.table({"id": [f"{n:032x}" for n in (3, 77)], "attr_name": ["it's", "new"]}))
    found = {row["id"]: row for b in table.scan(CARD.schema.names) for row in b.to_pylist()}
    assert found[f"{3:032x}"]["attr_name"] == "it's"
    assert found[f"{3:032x}"]["texts"] == ["text 3", "it's"]
    assert found[f"{77:032x}"]["vector_frozen"] is None
    assert len(found) == 21


def test_delete_by_condition(table: StoredTable) -> None:
    assert table.delete(Compare("attr_year", "<", 5)) == 5
    assert table.delete(id_condition([f"{n:032x}" for n in (1, 5, 6, 99)])) == 2
    assert sorted(ids(table)) == list(range(7, 20))


def test_scans_of_a_version_agree_and_filter(table: StoredTable) -> None:
    assert ids(table) == ids(table)
    assert sorted(ids(table, Compare("attr_year", ">=", 18))) == [18, 19]
    assert table.count(Compare("attr_year", ">=", 18)) == 2
    assert ids(table, Compare("attr_name", "=", "' OR 1=1 --")) == []


def test_a_reader_stays_on_its_version(table: StoredTable, opener: Open) -> None:
    reader = opener().open("c")
    before = reader.version
    assert not reader.refresh()
    table.upsert(rows(range(20, 22)))
    table.delete(Compare("attr_year", "=", 0))
    table.write_card("{}")
    assert (reader.version, reader.count(), len(ids(reader))) == (before, 20, 20)
    assert reader.read_card() == CARD.to_json()
    assert reader.refresh()
    assert reader.version > before
    assert (reader.count(), reader.read_card()) == (21, "{}")


def test_the_card_changes_without_the_rows(table: StoredTable, opener: Open) -> None:
    changed = CARD.changed(facts={"text": 'é "quoted" \\ \n' * 50})
    table.write_card(changed.to_json())
    assert Card.from_json(opener().open("c").read_card()) == changed
    table.upsert(rows(range(21)))
    assert Card.from_json(table.read_card()) == changed
    assert table.count() == 21


def test_columns_come_and_go(table: StoredTable) -> None:
    new = [
        pa.field("vector_v1_2e_2", pa.list_(pa.float32(), DIM)),
        pa.field("attr_a_20_b", pa.bool_()),
    ]
    table.add_columns(new)
    assert table.schema.names[-2:] == ["vector_v1_2e_2", "attr_a_20_b"]
    made = vectors(range(20), seed=5)
    table.upsert(pa.table({"id": rows(range(20))["id"], "vector_v1_2e_2": listed(made)}))
    ((found, values),) = table.nearest("vector_v1_2e_2", made[4:5], 1)
    assert ([int(i, 16) for i in found], round(float(values[0]), 5)) == ([4], 1.0)
    assert Card.from_json(table.read_card()) == CARD
    table.drop_columns(["vector_v1_2e_2", "attr_a_20_b"])
    assert table.schema.names == CARD.schema.names


@pytest.mark.parametrize("indexed", [False, True])
def test_nearest_finds_the_largest_products(table: StoredTable, indexed: bool) -> None:
    table.upsert(rows(range(300)))
    if indexed:
        table.build_index("vector_frozen", 4)
    table.upsert(rows(range(300, 320)))  # a tail that no index covers
    queries = vectors(range(3), seed=9)
    products = queries @ vectors(range(320)).T
    late = Compare("attr_year", ">=", 290)
    for where, first in ((None, 0), (late, 290)):
        answers = table.nearest("vector_frozen", queries, 10, where, 1000)  # more than there are
        for (found, values), row in zip(answers, products[:, first:], strict=True):
            best = np.argsort(-row)[:10]
            assert [int(i, 16) for i in found] == (first + best).tolist()
            np.testing.assert_allclose(values, row[best], atol=1e-5)
    nothing = Compare("attr_year", ">", 999)
    assert [found for found, _ in table.nearest("vector_frozen", queries, 10, nothing, 4)] == [
        [], [], []
    ]  # fmt: skip
    assert table.nearest("vector_frozen", queries[:0], 10) == []


def test_the_nearest_are_those_of_the_version_seen(table: StoredTable, opener: Open) -> None:
    reader = opener().open("c")
    query = vectors(range(21))[20:]
    ((before, _),) = reader.nearest("vector_frozen", query, 1)
    table.upsert(rows(range(20, 21)))
    ((found, _),) = reader.nearest("vector_frozen", query, 1)
    assert found == before
    for seen in (table, reader):
        seen.refresh()
        ((found, values),) = seen.nearest("vector_frozen", query, 1)
        assert ([int(i, 16) for i in found], round(float(values[0]), 5)) == ([20], 1.0)
    table.delete(id_condition(found))
    ((found, _),) = table.nearest("vector_frozen", query, 1)
    assert found == before


def test_several_threads_ask_at_once(table: StoredTable) -> None:
    table.upsert(rows(range(300)))
    table.build_index("vector_frozen", 4)
    made = vectors(range(300))
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        ((ids, _),) = table.nearest("vector_frozen", made[number : number + 1], 1, None, 4)
        found[number] = [int(i, 16) for i in ids]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(0, 300, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [number] for number in range(0, 300, 20)}


def test_rows_without_a_vector_are_never_near(table: StoredTable) -> None:
    table.upsert(pa.table({"id": ["bare"]}))
    part = rows(range(20, 24))
    some = pa.array([None, *part["vector_frozen"].to_pylist()[1:]], part["vector_frozen"].type)
    table.upsert(whole(part.set_column(4, "vector_frozen", some)))
    ((found, _),) = table.nearest("vector_frozen", vectors(range(24))[22:23], 50)
    assert (len(found), found[0]) == (23, f"{22:032x}")
    assert sum(b.column(0).null_count for b in table.scan(["vector_frozen"])) == 2


def test_the_index_says_what_it_covers_and_compact_extends_it(table: StoredTable) -> None:
    assert table.index("vector_frozen") is None
    table.upsert(rows(range(300)))
    table.build_index("vector_frozen", 4)
    table.upsert(whole(rows(range(295, 320), seed=3)))
    state = table.index("vector_frozen")
    assert state is not None
    assert (state.kind, state.rows, state.unindexed) == ("IVF_FLAT", 295, 25)
    table.compact(3600)
    state = table.index("vector_frozen")
    assert state is not None
    assert (state.rows, state.unindexed) == (320, 0)
    assert sorted(ids(table)) == list(range(320))
    table.build_index("vector_frozen", 2)  # again
    assert table.size() > 320 * DIM * 4


def test_compact_forgets_old_versions(table: StoredTable, opener: Open) -> None:
    for start in range(5):
        table.upsert(rows(range(start, start + 1), seed=start))
    before = table.size()
    table.compact(0)
    assert table.count() == 20
    assert opener().open("c").count() == 20
    assert table.size() <= before


def test_one_writer_at_a_time(store: CollectionStore, opener: Open) -> None:
    store.create("c", CARD.schema, "{}")
    store.create("d", CARD.schema, "{}")
    with store.lock("c", 0):
        with pytest.raises(UserError, match=r"'c' is being written by .*process \d+") as error:
            opener().lock("c", 0.2).__enter__()
        assert "waited 0.2 s" in error.value.what
        with opener().lock("d", 0):
            assert opener().open("c").count() == 0
        assert opener().names() == ["c", "d"]
    with opener().lock("c", 5):
        pass


def test_waiting_writers_take_turns(opener: Open) -> None:
    opener().create("c", CARD.schema, "{}")
    inside, most, done = 0, 0, []

    def write() -> None:
        nonlocal inside, most
        with opener().lock("c", 60):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1
            done.append(1)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(done), most) == (4, 1)


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path, bucket: dict[str, str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="folder"):
        LanceStore(tmp_path / "file").create("c", CARD.schema, "{}")
    with pytest.raises(UserError, match="cannot be read"):
        LanceStore("s3://nobucket/x", bucket).names()
    with pytest.raises(UserError, match="cloud"):
        LanceStore("db://x")
