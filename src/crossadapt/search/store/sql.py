"""Conditions as SQL for LanceDB (DataFusion). Values are rendered as literals, never pasted."""

from __future__ import annotations

from crossadapt.search.filters import (
    Among,
    Compare,
    Condition,
    Every,
    IsNull,
    Like,
    Not,
    Value,
)


def to_sql(condition: Condition) -> str:
    """The condition as a SQL expression that is true for exactly the rows that pass."""
    return _sql(condition, negated=False)


def _sql(condition: Condition, *, negated: bool) -> str:
    """True where the condition is true; where it is false, when `negated`.

    NOT stands at single comparisons only. LanceDB's planner merges lists of one column and loses
    that a missing value is neither true nor false: ``NOT (c IN (1) AND c IN (2))`` would pass rows
    without c.
    """
    if isinstance(condition, Not):
        return _sql(condition.inner, negated=not negated)
    if isinstance(condition, Among):
        name = _name(condition.column)
        values = ", ".join(map(literal, condition.values))
        if negated:
            return f"({name} IS NOT NULL AND {name} NOT IN ({values}))"
        return f"({name} IN ({values}))"
    if isinstance(condition, Compare | Like | IsNull):
        return f"(NOT {_single(condition)})" if negated else _single(condition)
    word = " AND " if isinstance(condition, Every) != negated else " OR "
    return f"({word.join(_sql(part, negated=negated) for part in condition.parts)})"


def _single(condition: Compare | Like | IsNull) -> str:
    name = _name(condition.column)
    if isinstance(condition, Compare):
        return f"({name} {condition.operator} {literal(condition.value)})"
    if isinstance(condition, Like):
        return f"({name} LIKE {literal(condition.pattern)})"
    return f"({name} IS NULL)"


def literal(value: Value) -> str:
    """A value as a SQL literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def _name(column: str) -> str:
    # Stored names hold letters, digits, - _ and . only (`card.check_name`): no backtick to escape.
    return f"`{column}`"
