"""The filter language: what it means (against plain Python), and that nothing can be injected."""

from __future__ import annotations

import operator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossadapt.errors import UserError
from crossadapt.search.card import Card, attribute_column
from crossadapt.search.filter_parser import MAX_DEPTH, parse
from crossadapt.search.filters import Among, Compare, columns_of, passing
from crossadapt.search.store.lance import LanceStore
from crossadapt.search.store.protocol import StoredTable
from crossadapt.search.store.sql import literal, to_sql

COLOURS = ["red", "Red", "it's", 'say "hi"', "a%b", "a_b", "a\\b", "", " ", "x\ny", "' OR 1=1 --",
           "é🚲", "`", "\x00", "\\", "%", "cat", "catalogue", "null", "--"]  # fmt: skip
CARD = Card("c", 4, "tiny", attributes={
    "colour": "string", "year": "int", "price": "float", "flag": "bool", "product name": "string",
})  # fmt: skip
COLUMNS = CARD.filterable
COUNT = 60
ROWS = [
    {
        "id": f"{row:032x}",
        "kind": "image" if row % 3 else "video",
        "width": row * 100,
        "attr_colour": None if row % 7 == 6 else COLOURS[row % len(COLOURS)],
        "attr_year": None if row % 11 == 3 else 1990 + row if row else -(2**63) + 1,
        "attr_price": None if row % 5 == 4 else row * 0.25 - 3,
        "attr_flag": [True, False, None][row % 3],
        attribute_column("product name"): f"name {row % 4}",
    }
    for row in range(COUNT)
]
TABLE = pa.Table.from_pylist(
    ROWS, pa.schema([field for field in CARD.schema if field.name in ROWS[0]])
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredTable:
    table = LanceStore(tmp_path_factory.mktemp("filters")).create("c", CARD.schema, "{}")
    table.upsert(TABLE)
    return table


def rows_by_arrow(text: str) -> list[int]:
    found = passing(parse(text, COLUMNS), TABLE)
    return list(range(COUNT)) if found is None else found.tolist()


def rows_by_lance(stored: StoredTable, text: str) -> list[int]:
    batches = stored.scan(["id"], parse(text, COLUMNS))
    return sorted(int(i, 16) for batch in batches for i in batch.column("id").to_pylist())


# --- a reference: (text of a filter, function of a row that gives True, False or None) ------------

OPERATORS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
             ">": operator.gt, ">=": operator.ge}  # fmt: skip
NAMES = {"colour": "attr_colour", "kind": "kind", "year": "attr_year", "price": "attr_price",
         "flag": "attr_flag", "width": "width",
         "`product name`": attribute_column("product name")}  # fmt: skip
texts = st.one_of(st.sampled_from(COLOURS), st.text(st.characters(exclude_categories=["Cs"])))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "colour": texts,
    "kind": st.sampled_from(["image", "video", "audio"]),
    "`product name`": st.sampled_from(["name 1", "name 2"]),
    "year": st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(1988, 2055),
    "width": st.integers(-(2**31) + 1, 2**31 - 1) | st.integers(0, 6000),
    "price": st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.25]),
    "flag": st.booleans(),
}


def written(value: Any, quote: str = '"') -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quote + value.replace(quote, quote * 2) + quote
    return repr(value)


def like(text: str, pattern: str) -> bool:
    """By dynamic programming over (text, pattern), not by a regular expression."""
    parts, place = [], 0
    while place < len(pattern):
        if pattern[place] == "\\" and pattern[place + 1 : place + 2] in ("%", "_", "\\"):
            place += 1
            parts.append(("char", pattern[place]))
        else:
            char = pattern[place]
            parts.append((char, "") if char in "%_" else ("char", char))
        place += 1
    reach = {0}
    for kind, char in parts:
        if kind == "%":
            reach = set(range(min(reach), len(text) + 1)) if reach else set()
        else:
            reach = {p + 1 for p in reach if p < len(text) and (kind == "_" or text[p] == char)}
    return len(text) in reach


@st.composite
def conditions(draw: st.DrawFn) -> tuple[str, Any]:
    name = draw(st.sampled_from(sorted(NAMES)))
    column, kind = NAMES[name], draw(st.sampled_from(["compare", "in", "null", "like"]))
    quote = draw(st.sampled_from("\"'"))
    if kind == "null":
        return f"{name} is null", lambda row: row[column] is None
    if kind == "in":
        values = draw(st.lists(VALUES[name], min_size=1, max_size=4))
        text = f"{name} in ({', '.join(written(v, quote) for v in values)})"
        return text, lambda row: None if row[column] is None else row[column] in values
    if kind == "like" and name in ("colour", "kind"):
        parts = st.sampled_from([*COLOURS, "%", "_", "\\%", "\\_", "\\\\", "a", "t"])
        pattern = "".join(draw(st.lists(parts, max_size=4)))
        text = f"{name} like {written(pattern, quote)}"
        return text, lambda row: None if row[column] is None else like(row[column], pattern)
    value = draw(VALUES[name])
    sign = draw(st.sampled_from(["=", "!="] if name == "flag" else sorted(OPERATORS)))

    def compare(row: dict[str, Any]) -> bool | None:
        return None if row[column] is None else OPERATORS[sign](row[column], value)

    return f"{name} {sign} {written(value, quote)}", compare


def negated(inner: tuple[str, Any]) -> tuple[str, Any]:
    text, test = inner
    return f"not ({text})", lambda row: None if test(row) is None else not test(row)


def joined(word: str, parts: list[tuple[str, Any]]) -> tuple[str, Any]:
    decisive = word == "or"

    def test(row: dict[str, Any]) -> bool | None:
        found = [part[1](row) for part in parts]
        if decisive in found:
            return decisive
        return None if None in found else not decisive

    return f" {word} ".join(f"({part[0]})" for part in parts), test


expressions = st.recursive(
    conditions(),
    lambda inner: st.one_of(
        inner.map(negated),
        st.builds(joined, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=5,
)
relaxed = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize(
    "text",
    [
        'not (colour in ("red", "a") and colour in ("Red", "b"))',
        'not colour in ("red", "a") or not colour in ("Red", "b")',
    ],
)
def test_a_missing_value_does_not_pass_lists_that_exclude_each_other(
    stored: StoredTable, text: str
) -> None:
    present = [number for number, row in enumerate(ROWS) if row["attr_colour"] is not None]
    assert len(present) < len(ROWS)
    assert rows_by_arrow(text) == present
    assert rows_by_lance(stored, text) == present


@relaxed
@given(expression=expressions)
def test_arrow_lance_and_python_agree(stored: StoredTable, expression: tuple[str, Any]) -> None:
    text, test = expression
    expected = [number for number, row in enumerate(ROWS) if test(row) is True]
    assert rows_by_arrow(text) == expected
    assert rows_by_lance(stored, text) == expected


@relaxed
@given(value=st.text(st.characters(exclude_categories=["Cs"])), quote=st.sampled_from("\"'"))
def test_any_string_comes_back_as_itself(value: str, quote: str) -> None:
    condition = parse(f"colour = {written(value, quote)}", COLUMNS)
    assert condition == Compare("attr_colour", "=", value)
    # What Lance gets is one literal: its quotes are all doubled, between one at either end.
    inside = literal(value)[1:-1]
    assert "'" not in inside.replace("''", "")
    assert inside.replace("''", "'") == value


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(
        st.sampled_from("colour year='\"();-- \\%`and or not in like is null 1.5e"), max_size=40
    )
)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        condition = parse(text, COLUMNS)
    except UserError:
        return
    assert condition is None or columns_of(condition) <= set(CARD.schema.names)


@pytest.mark.parametrize(
    "text",
    [
        'colour = "x"; drop table c',
        "colour = 'x' or 1 = 1",
        "1 = 1",
        "colour = 'x' -- comment",
        "year = (select 1)",
        "colour = colour",
        "colour = 'x' union select",
        "year = 1 /* */ or true",
        "`colour` = 'x' or `id` = (`id`)",
        "length(colour) > 1",
        "colour = '\ud800'",
    ],
)
def test_sql_is_not_the_language(text: str) -> None:
    with pytest.raises(UserError, match="the filter"):
        parse(text, COLUMNS)


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("colr = 'red'", "names no column 'colr'", "did you mean 'colour'?"),
        ("year = 'red'", "another type", "whole number"),
        ("year >= 2020.5", "fraction", "whole number"),
        ("year > 99999999999999999999", "beyond", "whole number"),
        ("width > 3000000000", "beyond", "whole number"),
        ("price > 1e999", "too large", "number"),
        ("colour = 5", "another type", "quotes"),
        ("colour = red", "another type", "quotes"),
        ("flag > true", "orders", "example"),
        ("flag = 1", "another type", "true or false"),
        ("year like '%'", "not text", "example"),
        ("year = ", "ends", "example"),
        ("colour in ()", "another type", "quotes"),
        ("(colour = 'a'", "needs ')'", "example"),
        ("colour = 'a' 'b'", "after its end", "example"),
        ("colour = 'a", "cannot be read", "example"),
        ("colour", "needs a comparison", "example"),
        ("not", "needs a column", "example"),
        ("thumbnail is null", "names no column", "choose"),
    ],
)
def test_what_is_wrong_is_said(text: str, what: str, fix: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text, COLUMNS)
    assert what in error.value.what
    assert fix in error.value.fix


def test_the_size_of_a_filter_is_bounded(stored: StoredTable) -> None:
    deep = MAX_DEPTH - 1
    assert len(rows_by_lance(stored, "(" * deep + "flag" + ")" * deep)) == 20
    with pytest.raises(UserError, match="nested"):
        parse("(" * 500 + "flag" + ")" * 500, COLUMNS)
    with pytest.raises(UserError, match="nested"):
        parse("not " * 500 + "flag", COLUMNS)
    many = " or ".join(f"year = {year}" for year in range(1990, 1990 + 256))
    assert len(rows_by_lance(stored, many)) == len(rows_by_arrow(many)) > 40
    with pytest.raises(UserError, match="more than 256 conditions"):
        parse(f"{many} or year = 1", COLUMNS)
    with pytest.raises(UserError, match="characters"):
        parse("flag" + " " * 30_000 + "= true", COLUMNS)


def test_words_signs_and_spaces() -> None:
    assert parse("  \n", COLUMNS) is None
    assert (
        rows_by_arrow("FLAG".lower()) == rows_by_arrow("flag = TRUE") == rows_by_arrow("flag==true")
    )
    assert rows_by_arrow("year <> 2000") == rows_by_arrow("year!=2000")
    assert rows_by_arrow("colour not in ('red')") == rows_by_arrow("not colour in ('red')")
    assert rows_by_arrow("colour is not null") == rows_by_arrow("not colour is null")
    assert rows_by_arrow("year = 2000.0") == rows_by_arrow("year = 2000") == [10]
    assert parse("year in (1, 2,3)", COLUMNS) == Among("attr_year", (1, 2, 3))
    assert to_sql(parse("`product name` = 'x'", COLUMNS)) == "(`attr_product_20_name` = 'x')"
