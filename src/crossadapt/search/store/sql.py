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
    """The condition as a SQL expression."""
    if isinstance(condition, Compare):
        return f"({_name(condition.column)} {condition.operator} {literal(condition.value)})"
    if isinstance(condition, Among):
        values = ", ".join(map(literal, condition.values))
        return f"({_name(condition.column)} IN ({values}))"
    if isinstance(condition, Like):
        return f"({_name(condition.column)} LIKE {literal(condition.pattern)})"
    if isinstance(condition, IsNull):
        return f"({_name(condition.column)} IS NULL)"
    if isinstance(condition, Not):
        return f"(NOT {to_sql(condition.inner)})"
    word = " AND " if isinstance(condition, Every) else " OR "
    return f"({word.join(map(to_sql, condition.parts))})"


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
