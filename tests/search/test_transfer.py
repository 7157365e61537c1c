"""Export and import: nothing is lost on the way, and a wrong file changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.search.making import CARD, FROZEN, items, listed, name, names, vectors

from crossadapt.cli.main import main
from crossadapt.errors import UserError
from crossadapt.search.card import View
from crossadapt.search.collection import Collections
from crossadapt.search.transfer import export_npy, export_parquet, import_parquet


@pytest.fixture
def home(tmp_path: Path) -> Collections:
    home = Collections(tmp_path / "store")
    with home.create(CARD.changed(facts={"calibration": [1], "index": {"views": {}}})) as made:
        made.upsert(items(30))
        made.upsert(pa.table({"id": ["bare"], FROZEN: listed(vectors(1, 5))}))
    return home


def everything(home: Collections, collection: str) -> pa.Table:
    opened = home.open(collection)
    return pa.Table.from_batches(opened.scan(opened.card.schema.names)).sort_by("id")


def test_parquet_there_and_back(home: Collections, tmp_path: Path) -> None:
    assert export_parquet(home.open("c"), tmp_path / "c.parquet") == 31
    assert import_parquet(home, tmp_path / "c.parquet", "copy") == 31
    assert everything(home, "copy").cast(CARD.schema) == everything(home, "c").cast(CARD.schema)
    copy, card = home.open("copy").card, home.open("c").card
    assert (copy.views, copy.attributes, copy.backbone) == (
        card.views,
        card.attributes,
        "tiny:clip",
    )
    assert copy.facts == {"calibration": [1]}
    assert copy.uid != card.uid
    assert import_parquet(home, tmp_path / "c.parquet", "copy") == 31  # by id: nothing twice
    assert len(home.open("copy")) == 31


def test_a_filtered_export(home: Collections, tmp_path: Path) -> None:
    assert export_parquet(home.open("c"), tmp_path / "x.parquet", filter="flag") == 15
    assert sorted(pq.read_table(tmp_path / "x.parquet")["id"].to_pylist()) == names(range(0, 30, 2))
    with pytest.raises(UserError, match="no column 'flg'"):
        export_parquet(home.open("c"), tmp_path / "y.parquet", filter="flg")
    assert [file.name for file in tmp_path.glob("*.parquet*")] == ["x.parquet"]


def test_npy_holds_the_rows_that_have_a_vector(home: Collections, tmp_path: Path) -> None:
    counts = export_npy(home.open("c"), tmp_path / "out")
    assert counts == {"frozen": 31, "birds-v1.2": 30}
    matrix = np.load(tmp_path / "out" / "birds-v1.2.npy")
    ids = (tmp_path / "out" / "birds-v1.2.ids.txt").read_text().splitlines()
    assert (matrix.dtype, matrix.shape) == (np.float32, (30, 16))
    np.testing.assert_array_equal(matrix, vectors(30, 2)[[int(i, 16) for i in ids]])
    assert "bare" in (tmp_path / "out" / "frozen.ids.txt").read_text().split()


def foreign(**columns: Any) -> pa.Table:
    rows = {"id": ["a", "b"], "vector": vectors(2, 4).astype(np.float64).tolist(),
            "colour": ["red", None], "size": [1, 2], "nested": [[1], [2]]}  # fmt: skip
    return pa.table({k: v for k, v in (rows | columns).items() if v is not None})


def test_a_foreign_file_becomes_a_collection(home: Collections, tmp_path: Path) -> None:
    pq.write_table(foreign(), tmp_path / "f.parquet")
    view = View("frozen", "hash")
    import_parquet(home, tmp_path / "f.parquet", "f", backbone="tiny:clip", view=view)
    made = home.open("f")
    assert made.card.attributes == {"colour": "string", "size": "int"}
    assert (made.card.views, made.card.dim) == ((view,), 16)
    assert made.search(vectors(2, 4)[1], 1, filter="size = 2 and colour is null").ids == ["b"]
    made.require({"frozen": "hash"})


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (foreign(id=["a", "a"]), "'a' occurs twice"),
        (foreign(id=None), "no column id"),
        (foreign(vector=None), "no column of vectors"),
        (foreign(vector=[[1.0, 0.0], [1.0]]), "length 1"),
        (foreign(vector=[[1.0, 0.0], [1.0, 1.0]]), "no unit length"),
        (foreign(vector=[None, [1.0]]), "first row has no vector"),
        (foreign(vector=["a", "b"]), "first row has no vector"),
    ],
)
def test_a_wrong_file_makes_no_collection(
    home: Collections, tmp_path: Path, rows: pa.Table, what: str
) -> None:
    pq.write_table(rows, tmp_path / "f.parquet")
    with pytest.raises(UserError, match=what):
        import_parquet(home, tmp_path / "f.parquet", "f")
    assert home.names() == ["c"]


def test_an_id_twice_in_a_large_file_is_found_before_writing(
    home: Collections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossadapt.search.transfer._BATCH", 4)
    ids = [*names(range(9)), name(0)]
    rows = pa.table({"id": ids, "vector": vectors(10).tolist()})
    pq.write_table(rows, tmp_path / "f.parquet")
    with pytest.raises(UserError, match="occurs twice"):
        import_parquet(home, tmp_path / "f.parquet", "f")
    assert home.names() == ["c"]


def test_an_import_that_fails_half_way_leaves_no_half(
    home: Collections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossadapt.search.opened import Collection

    export_parquet(home.open("c"), tmp_path / "c.parquet")
    monkeypatch.setattr("crossadapt.search.transfer._BATCH", 10)
    upsert, calls = Collection.upsert, []

    def second_fails(self: Collection, rows: pa.Table) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise UserError("the disk is full")
        upsert(self, rows)

    monkeypatch.setattr(Collection, "upsert", second_fails)
    with pytest.raises(UserError, match="full"):
        import_parquet(home, tmp_path / "c.parquet", "copy")
    assert home.names() == ["c"]


def test_vectors_of_another_model_are_not_mixed_in(home: Collections, tmp_path: Path) -> None:
    pq.write_table(foreign(), tmp_path / "f.parquet")
    with pytest.raises(UserError, match="made by another model"):
        import_parquet(home, tmp_path / "f.parquet", "c", view=View("frozen", "other"))
    pq.write_table(foreign(vector=[[1.0, 0.0], [0.0, 1.0]]), tmp_path / "g.parquet")
    with pytest.raises(UserError, match="length 2, the collection's 16"):
        import_parquet(home, tmp_path / "g.parquet", "c")
    (tmp_path / "h.parquet").write_bytes(b"%PDF-1.4")
    for path in (tmp_path / "h.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(UserError, match="not a readable Parquet file"):
            import_parquet(home, path, "c")
    assert len(home.open("c")) == 31


# --- the command line ----------------------------------------------------------------------------


def run(*args: str | Path) -> int:
    return main(["collection", *map(str, args)])


def test_the_commands(
    home: Collections, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--store", home.uri)

    def printed() -> Any:
        return json.loads(capsys.readouterr().out)

    assert run("list", *at, "--json") == 0
    assert [entry["name"] for entry in printed()] == ["c"]
    assert run("stats", "c", *at, "--json") == 0
    assert printed()["rows"] == 31
    assert run("maintain", "c", *at, "--json") == 0
    assert printed()["stats"]["recall"] == 1.0
    out = tmp_path / "c.parquet"
    assert run("export", "c", out, *at, "--json") == 0
    assert printed() == {"file": str(out), "rows": 31}
    assert run("import", out, "d", *at, "--json") == 0
    assert printed() == {"name": "d", "rows": 31}
    assert run("export", "c", tmp_path / "npy", *at, "--filter", "flag") == 0
    assert "wrote 15 vectors" in capsys.readouterr().out
    assert run("drop", "d", "--yes", *at, "--json") == 0
    assert printed() == {"name": "d", "dropped": True}
    assert home.names() == ["c"]
    for args in (("list",), ("stats", "c"), ("maintain", "c")):
        assert run(*args, *at) == 0
    shown = capsys.readouterr().out
    assert "birds-v1.2 (default)" in shown
    assert "recall of the ten nearest" in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "needs a subcommand"),
        (("stat",), "did you mean 'stats'"),
        (("stats", "nothing"), "no collection 'nothing'"),
        (("stats", "../c"), "cannot name a collection"),
        (("maintain", "c", "--recall", "2"), "--recall is 2"),
        (("maintain", "c", "--keep-hours", "-1"), "--keep-hours is -1"),
        (("drop", "c"), "add --yes"),
        (("drop", "d", "--yes"), "no collection 'd'"),
        (("export", "c", "STORE/c.lance"), "something already"),
        (("import", "missing.parquet", "d"), "not a readable Parquet file"),
    ],
)
def test_what_a_command_refuses(
    home: Collections, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    given = [arg.replace("STORE", home.uri) for arg in args]
    assert run(*given, *(("--store", home.uri) if len(args) > 1 else ())) == 1
    assert said in capsys.readouterr().err
    assert home.names() == ["c"]


def test_list_goes_past_a_collection_it_cannot_read(
    home: Collections, capsys: pytest.CaptureFixture[str]
) -> None:
    home.store.create("newer", CARD.schema, json.dumps(json.loads(CARD.to_json()) | {"format": 9}))
    assert run("list", "--store", home.uri) == 0
    shown = capsys.readouterr().out
    assert "has format 9" in shown
    assert "frozen, birds-v1.2" in shown
    assert run("list", "--store", f"{home.uri}-none") == 0
    assert "no collections" in capsys.readouterr().out
    assert not Path(f"{home.uri}-none").exists()
