"""Writing a collection: what is accepted and how it is stored, names, cards, formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.search.making import CARD, FROZEN, items, listed, name, names, vectors

from crossadapt.errors import UserError
from crossadapt.search.card import FORMAT, Card, View, attribute_column, check_name
from crossadapt.search.collection import Collection, Collections


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Collection]:
    with Collections(tmp_path / "store").create(CARD) as collection:
        collection.upsert(items(50))
        yield collection


def test_views_and_attributes_come_and_go(writer: Collection) -> None:
    writer.update_card(
        views=(*CARD.views, View("cars", "hash-cars")),
        attributes=CARD.attributes | {"product name": "string"},
        default_view="cars",
    )
    assert writer.search(vectors(1)[0], 5).ids == []
    part = {"id": names([3, 4]), "vector_cars": listed(vectors(2, 9)),
            attribute_column("product name"): ["x", "y"]}  # fmt: skip
    writer.upsert(pa.table(part))
    hits = writer.search(vectors(2, 9)[1], 5)
    assert (hits.ids[0], len(hits.ids), hits.passing) == (name(4), 2, 50)
    assert writer.search(vectors(2, 9)[1], 5, filter='`product name` = "x"').ids == [name(3)]
    assert writer.search(vectors(2, 9)[1], 5, strength=0.5).searched == 2
    assert writer.get([name(3)])["item"].to_pylist() == ["photos/3.jpg"]
    writer.update_card(views=CARD.views, attributes=CARD.attributes)
    assert writer.card.default_view == "birds-v1.2"
    assert "vector_cars" not in writer.card.schema.names
    with pytest.raises(UserError, match="no view 'cars'"):
        writer.search(vectors(1)[0], view="cars")
    with pytest.raises(UserError, match="cannot become"):
        writer.update_card(attributes=CARD.attributes | {"year": "string"})
    with pytest.raises(UserError, match="cannot change"):
        writer.update_card(dim=8)


def replaced(**columns: Any) -> pa.Table:
    rows = items(2)
    for column, values in columns.items():
        values = values if isinstance(values, pa.Array) else pa.array(values)
        at = rows.schema.get_field_index(column)
        rows = rows.append_column(column, values) if at < 0 else rows.set_column(at, column, values)
    return rows


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (replaced(colour=["a", "b"]), "unknown column 'colour'"),
        (replaced(id=["a", "a"]), "'a' occurs twice"),
        (replaced(id=["a", None]), "no id"),
        (replaced(id=["a", ""]), "no id"),
        (items(2).drop_columns(["id"]), "no column id"),
        (replaced(attr_year=["x", "y"]), "cannot be stored"),
        (replaced(width=[1, 2**40]), "cannot be stored"),
        (replaced(vector_frozen=listed(vectors(2, dim=8))), "length 8"),
        (replaced(vector_frozen=[[1.0], [2.0, 3.0]]), "length 1"),
        (replaced(vector_frozen=listed(vectors(2) * 1.01)), "2 vectors .* no unit length"),
        (replaced(vector_frozen=listed(vectors(2) * np.nan)), "no unit length"),
        (replaced(vector_frozen=["a", "b"]), "not vectors"),
    ],
)
def test_wrong_rows_change_nothing(writer: Collection, rows: pa.Table, what: str) -> None:
    before = writer.version
    with pytest.raises(UserError, match=what):
        writer.upsert(rows)
    assert (writer.version, len(writer)) == (before, 50)


def test_rounded_vectors_are_stored_with_unit_length(writer: Collection) -> None:
    half = vectors(2, 4).astype(np.float16).astype(np.float64)
    writer.upsert(replaced(vector_frozen=pa.array(half.tolist())))
    stored = np.array(writer.get(names([0, 1]), [FROZEN])[FROZEN].to_pylist(), np.float32)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(stored, half, atol=1e-3)


def test_numbers_that_are_none_become_missing(writer: Collection) -> None:
    writer.upsert(replaced(attr_price=[float("nan"), -0.0]))
    assert writer.search(vectors(1)[0], 9, filter="price is null").ids == [name(0)]
    assert writer.search(vectors(1)[0], 9, filter="price = 0").ids == [name(1)]


def test_a_view_can_be_missing_in_some_rows(writer: Collection) -> None:
    writer.upsert(pa.table({"id": ["bare"], FROZEN: listed(vectors(1, 5))}))
    assert writer.search(vectors(1, 5)[0], 1, view="frozen").ids == ["bare"]
    hits = writer.search(vectors(1, 5)[0], 99)
    assert (len(hits.ids), hits.searched, hits.passing) == (50, 50, 51)
    assert "bare" not in writer.search(vectors(1, 5)[0], 99, strength=0.5).ids
    assert sum(block.shape[1] for block in writer.scores(vectors(1, 5))) == 50


@pytest.mark.parametrize(
    "wrong",
    ["", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "_lease.c", "a b", "é", "a\0", "a..b",
     "-x", "a" * 101],
)  # fmt: skip
def test_names_that_could_be_paths_are_refused(tmp_path: Path, wrong: str) -> None:
    home = Collections(tmp_path / "store")
    for use in (home.open, home.drop, check_name):
        with pytest.raises(UserError, match="cannot name"):
            use(wrong)
    with pytest.raises(UserError, match="cannot name"):
        Card(wrong, 4, "tiny")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"views": ()}, "needs a view"),
        ({"views": (View("a"), View("a"))}, "twice"),
        ({"views": (View("../a"),)}, "cannot name a view"),
        ({"dim": 0}, "dim is 0"),
        ({"default_view": "x"}, "no view 'x'"),
        ({"attributes": {"a`b": "int"}}, "cannot name an attribute"),
        ({"attributes": {"a": "text"}}, "unknown type 'text'"),
        ({"attributes": {"a-b": "int", "a_2d_b": "int"}}, "two names"),
    ],
)
def test_impossible_cards_are_refused(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        Card(**{"name": "c", "dim": 4, "backbone": "tiny"} | wrong)


def test_a_card_survives_json_with_unknown_fields() -> None:
    card = CARD.changed(facts={"a": [1, {"b": "é"}]})
    assert Card.from_json(card.to_json()) == card
    more = json.loads(card.to_json()) | {"later": 1}
    assert Card.from_json(json.dumps(more)) == card


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    home = Collections(tmp_path)
    newer = json.loads(CARD.to_json()) | {"format": FORMAT + 1}
    home.store.create("c", CARD.schema, json.dumps(newer))
    for write in (False, True):
        with pytest.raises(UserError, match="has format 2; this program reads up to 1") as error:
            home.open("c", write=write)
        assert "upgrade" in error.value.fix
    home.store.create("other", CARD.schema, "")
    with pytest.raises(UserError, match="not a collection of crossadapt"):
        home.open("other")
    home.drop("c")
    assert home.names() == ["other"]


def test_maintain_below_the_limit_stays_exact(writer: Collection) -> None:
    for start in range(5):
        writer.upsert(items(1, start=start))
    before = writer.search(vectors(1)[0], 5)
    done = writer.maintain()
    assert (done["index"]["kind"], done["stats"]["recall"]) == ("exact", 1.0)
    assert writer.search(vectors(1)[0], 5).ids == before.ids
    assert writer.get([name(2)])["item"].to_pylist() == ["photos/2.jpg"]
