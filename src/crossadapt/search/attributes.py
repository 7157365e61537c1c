"""Types of attributes: one per column, the same in every row and on every run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crossadapt.data.signals import SIGNALS
from crossadapt.errors import UserError
from crossadapt.search.sources import Entry

_INT = re.compile(r"-?(?:0|[1-9]\d{0,17})")
_FLOAT = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_BOOL = {"true": True, "false": False}
_UNFIT = re.compile(r"[^\w .-]")
_LONGEST_NAME = 100

# In the order in which they are tried on texts of a delimited file.
_PARSERS: dict[str, tuple[Callable[[str], bool], Callable[[str], Any]]] = {
    "int": (lambda text: _INT.fullmatch(text) is not None, int),
    "float": (lambda text: _FLOAT.fullmatch(text) is not None, float),
    "bool": (lambda text: text.lower() in _BOOL, lambda text: _BOOL[text.lower()]),
}


def settle(entries: Sequence[Entry], known: Mapping[str, str]) -> dict[str, str]:
    """Decide each attribute's type and bring the values of all entries to it.

    Values of JSON and Parquet keep their type; whole numbers become decimal ones where a column
    has both. Delimited files have no types: a column is bool, int or float if all its texts read
    so, without loss (``007`` stays a text). Empty cells are missing values. Names lose characters
    that a filter could not spell.

    Args:
        entries: changed in place.
        known: attribute to type, as the collection has them already.

    Returns:
        Attribute to ``bool``, ``int``, ``float`` or ``string``, of those with any value.

    Raises:
        UserError: a column has values of two types, or of another type than in the collection.
    """
    _rename(entries)
    values: dict[str, list[tuple[Entry, Any]]] = {}
    for entry in entries:
        for name, value in entry.attributes.items():
            if name == SIGNALS:
                continue  # series of numbers: nothing a filter could compare
            if entry.loose and isinstance(value, str):
                value = value.strip()
            if value not in (None, "") and not (isinstance(value, float) and math.isnan(value)):
                values.setdefault(name, []).append((entry, value))
        entry.attributes = {}
    types = {}
    for name, found in values.items():
        types[name] = kind = _type(name, found, known.get(name))
        for entry, value in found:
            entry.attributes[name] = _converted(value, kind, entry.loose)
    return types


def _type(name: str, found: Sequence[tuple[Entry, Any]], known: str | None) -> str:
    strict: dict[str, tuple[Entry, Any]] = {}
    texts: list[tuple[Entry, str]] = []
    for entry, value in found:
        if entry.loose and isinstance(value, str):
            texts.append((entry, value))
        else:
            strict.setdefault(_kind(name, entry, value), (entry, value))
    if set(strict) == {"int", "float"} or (known == "float" and set(strict) == {"int"}):
        strict = {"float": strict.get("float") or strict["int"]}
    if len(strict) > 1:
        (one, first), (other, second) = list(strict.items())[:2]
        raise UserError(
            f"column {name!r} changes its type: {first[1]!r} is {one}, {second[1]!r} is {other}",
            where=f"{first[0].item} and {second[0].item}",
            fix="write the whole column as one type, or rename one of the two",
        )
    kind = next(iter(strict), None) or known or _parsed(texts)
    if known is not None and kind != known:
        entry, value = strict[kind]
        raise UserError(
            f"column {name!r} changes its type: the collection has {known}, {value!r} is {kind}",
            where=entry.item,
            fix="correct the column, rename it, or index into a new collection",
        )
    if kind != "string":
        for entry, text in texts:
            if not _PARSERS[kind][0](text):
                raise UserError(
                    f"column {name!r} changes its type: {text!r} is not {kind}",
                    where=entry.item,
                    fix="correct the value, rename the column, or index into a new collection",
                )
    return kind


def _kind(name: str, entry: Entry, value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UserError(
                f"column {name!r} has a number that needs more than 64 bits: {value}",
                where=entry.item,
                fix="write the column as text",
            )
        return "int"
    return "float" if isinstance(value, float) else "string"


def _parsed(texts: Sequence[tuple[Entry, str]]) -> str:
    for kind, (fits, _) in _PARSERS.items():
        if all(fits(text) for _, text in texts):
            return kind
    return "string"


def _converted(value: Any, kind: str, loose: bool) -> Any:
    if loose and isinstance(value, str) and kind != "string":
        return _PARSERS[kind][1](value)
    return float(value) if kind == "float" else value


def _rename(entries: Sequence[Entry]) -> None:
    names: dict[str, str] = {}
    for entry in entries:
        for name in entry.attributes:
            if name not in names:
                fit = _UNFIT.sub("_", name).strip(" .")[:_LONGEST_NAME].strip(" .") or "_"
                if fit in names.values():
                    twin = next(old for old, new in names.items() if new == fit)
                    raise UserError(
                        f"columns {twin!r} and {name!r} would both be stored as {fit!r}",
                        where=entry.item,
                        fix="rename one of them",
                    )
                names[name] = fit
    if any(old != new for old, new in names.items()):
        for entry in entries:
            entry.attributes = {names[k]: v for k, v in entry.attributes.items()}
