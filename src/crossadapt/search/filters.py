"""The filter language: parsed to conditions, then evaluated by Arrow or rendered for an engine.

    colour in ("red", "blue") and year >= 2020 and not (name like "cat%" or flag)

Comparisons ``= != < <= > >=``, ``in (...)``, ``not in (...)``, ``like`` (``%`` any text, ``_`` one
character, a backslash before either means the character), ``is null``, ``is not null``, ``and``,
``or``, ``not``, parentheses; a true/false column may stand alone. Strings are in single or double
quotes; a quote inside is written twice. A condition on a missing value is neither true nor false,
as in SQL, and such a row does not pass.

A filter never reaches an engine as it was typed: only values that were read as values do, each
rendered again as a literal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from crossadapt.search.arrow import pc

Value = bool | int | float | str
OPERATORS = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


@dataclass(frozen=True)
class Compare:
    """``column operator value``."""

    column: str
    operator: str
    value: Value


@dataclass(frozen=True)
class Among:
    """``column in (values)``."""

    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Like:
    """``column like pattern``."""

    column: str
    pattern: str


@dataclass(frozen=True)
class IsNull:
    """``column is null``; the only condition that is never unknown."""

    column: str


@dataclass(frozen=True)
class Not:
    """The opposite; unknown stays unknown."""

    inner: Condition


@dataclass(frozen=True)
class Every:
    """``and`` of several."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Either:
    """``or`` of several."""

    parts: tuple[Condition, ...]


Condition = Compare | Among | Like | IsNull | Not | Every | Either


def columns_of(condition: Condition) -> set[str]:
    """The stored columns a condition looks at."""
    if isinstance(condition, Not):
        return columns_of(condition.inner)
    if isinstance(condition, Every | Either):
        return set().union(*map(columns_of, condition.parts))
    return {condition.column}


def mask(condition: Condition, rows: pa.Table) -> pa.ChunkedArray:
    """Which rows pass: bool (N,), null where the condition is unknown."""
    if isinstance(condition, Compare):
        column = rows[condition.column]
        return OPERATORS[condition.operator](column, pa.scalar(condition.value, column.type))
    if isinstance(condition, Among):
        column = rows[condition.column]
        found = pc.is_in(column, value_set=pa.array(condition.values, column.type))
        return pc.if_else(pc.is_valid(column), found, pa.scalar(None, pa.bool_()))
    if isinstance(condition, Like):
        return pc.match_substring_regex(rows[condition.column], _regex(condition.pattern))
    if isinstance(condition, IsNull):
        return pc.is_null(rows[condition.column])
    if isinstance(condition, Not):
        return pc.invert(mask(condition.inner, rows))
    join = pc.and_kleene if isinstance(condition, Every) else pc.or_kleene
    result = mask(condition.parts[0], rows)
    for part in condition.parts[1:]:
        result = join(result, mask(part, rows))
    return result


def _like_parts(pattern: str) -> list[tuple[str, bool]]:
    """(character, whether it is a wildcard) of a pattern; a last lone backslash is itself."""
    parts, place = [], 0
    while place < len(pattern):
        char = pattern[place]
        if char == "\\" and place + 1 < len(pattern) and pattern[place + 1] in "%_\\":
            parts.append((pattern[place + 1], False))
            place += 1
        else:
            parts.append((char, char in "%_"))
        place += 1
    return parts


def _regex(pattern: str) -> str:
    wild = {"%": ".*", "_": "."}
    parts = [wild[char] if special else re.escape(char) for char, special in _like_parts(pattern)]
    return f"(?s)^{''.join(parts)}\\z".replace("\x00", "\\x00")


def id_condition(ids: Sequence[str]) -> Condition:
    """The rows with these ids."""
    return Among("id", tuple(ids))


def passing(condition: Condition | None, rows: pa.Table) -> Any:
    """Numbers of the rows that pass, int64 (P,); None when there is no condition."""
    if condition is None:
        return None
    return pc.indices_nonzero(mask(condition, rows)).to_numpy().astype("int64")
