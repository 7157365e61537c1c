"""The parser of the filter language: text to the conditions of `crossadapt.search.filters`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import pyarrow as pa

from crossadapt.errors import UserError, did_you_mean
from crossadapt.search.filters import (
    OPERATORS,
    Among,
    Compare,
    Condition,
    Either,
    Every,
    IsNull,
    Like,
    Not,
    Value,
)

MAX_LENGTH = 20_000
MAX_DEPTH = 16
MAX_CONDITIONS = 256


def parse(text: str, columns: Mapping[str, pa.Field]) -> Condition | None:
    """Read a filter; None for an empty one.

    Args:
        text: what was typed.
        columns: the name it may use to the stored column, with its type.

    Raises:
        UserError: it cannot be read (the place is shown), names an unknown column (the nearest is
            named), or compares a column with a value of another type.
    """
    if not text.strip():
        return None
    if len(text) > MAX_LENGTH:
        raise UserError(
            f"the filter has {len(text):,} characters; the limit is {MAX_LENGTH:,}", where="filter"
        )
    return _Parser(text, columns).whole()


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"]|"")*"|'(?:[^']|'')*')
    | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<name>[^\W\d][\w.-]*|`[^`]+`)
    | (?P<sign><=|>=|!=|<>|==|[=<>(),])
    )""",
    re.X,
)
_WORDS = {"and", "or", "not", "in", "like", "is", "null", "true", "false"}
_SIGNS = {"==": "=", "<>": "!="}


class _Parser:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, text: str, columns: Mapping[str, pa.Field]) -> None:
        self.text, self.columns = text, columns
        self.tokens, self.place, self.depth, self.conditions = self._split(), 0, 0, 0

    def _split(self) -> list[tuple[str, str, int]]:
        """(kind, text, position) of every token; words of the language have kind ``word``."""
        tokens, at, end = [], 0, len(self.text.rstrip())
        while at < end:
            found = _TOKEN.match(self.text, at)
            if found is None:
                at += len(self.text[at:]) - len(self.text[at:].lstrip())
                raise self.error("cannot be read from here", at)
            kind, word = str(found.lastgroup), found[str(found.lastgroup)]
            if kind == "name" and word.lower() in _WORDS:
                kind, word = "word", word.lower()
            tokens.append(
                (kind, _SIGNS.get(word, word), found.start(kind if kind != "word" else "name"))
            )
            at = found.end()
        return tokens

    def error(self, what: str, at: int | None = None, fix: str = "") -> UserError:
        """A `UserError` that shows the place."""
        if at is None:
            at = self.tokens[self.place][2] if self.place < len(self.tokens) else len(self.text)
        start = max(0, at - 40)
        shown = f"{self.text[start:at]} >>> {self.text[at : at + 40]}"
        example = 'for example: colour in ("red", "blue") and year >= 2020'
        return UserError(f"the filter {what}", where=shown.strip(), fix=fix or example)

    def peek(self, *wanted: str) -> bool:
        """Whether the next token is one of these words or signs."""
        if self.place >= len(self.tokens):
            return False
        kind, text, _ = self.tokens[self.place]
        return kind in ("word", "sign") and text in wanted

    def take(self, *wanted: str) -> str:
        """The next token if it is one of these, else an empty string."""
        if not self.peek(*wanted):
            return ""
        self.place += 1
        return self.tokens[self.place - 1][1]

    def need(self, wanted: str) -> None:
        """Step over this word or sign."""
        if not self.take(wanted):
            raise self.error(f"needs {wanted!r} here")

    def whole(self) -> Condition:
        """The whole filter."""
        condition = self.either()
        if self.place < len(self.tokens):
            raise self.error("goes on after its end")
        return condition

    def either(self) -> Condition:
        """``and`` groups joined by ``or``."""
        parts = [self.every()]
        while self.take("or"):
            parts.append(self.every())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def every(self) -> Condition:
        """Conditions joined by ``and``."""
        parts = [self.negated()]
        while self.take("and"):
            parts.append(self.negated())
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def negated(self) -> Condition:
        """``not``, parentheses, or one condition."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"is nested deeper than {MAX_DEPTH}")
        if self.take("not"):
            result: Condition = Not(self.negated())
        elif self.take("("):
            result = self.either()
            self.need(")")
        else:
            result = self.condition()
        self.depth -= 1
        return result

    def condition(self) -> Condition:
        """One condition on one column."""
        self.conditions += 1
        if self.conditions > MAX_CONDITIONS:
            raise self.error(f"has more than {MAX_CONDITIONS} conditions", fix="use in (...)")
        field = self.column()
        if self.take("is"):
            negative = self.take("not")
            self.need("null")
            return Not(IsNull(field.name)) if negative else IsNull(field.name)
        if self.peek("not", "in", "like"):
            negative = self.take("not")
            inner = self.among(field) if self.take("in") else self.like(field)
            return Not(inner) if negative else inner
        if operator := self.take(*OPERATORS):
            at = self.place
            value = self.value(field)
            if pa.types.is_boolean(field.type) and operator not in ("=", "!="):
                raise self.error("orders a column of true and false", self.tokens[at][2])
            return Compare(field.name, operator, value)
        if pa.types.is_boolean(field.type):
            return Compare(field.name, "=", True)
        raise self.error("needs a comparison here: = != < <= > >= in like is")

    def column(self) -> pa.Field:
        """The column named by the next token."""
        kind, name, _ = self.tokens[self.place] if self.place < len(self.tokens) else ("", "", 0)
        if kind != "name":
            raise self.error("needs a column here")
        name = name.strip("`")
        if name not in self.columns:
            raise self.error(f"names no column {name!r}", fix=did_you_mean(name, self.columns))
        self.place += 1
        return self.columns[name]

    def among(self, field: pa.Field) -> Condition:
        """The list after ``in``."""
        self.need("(")
        values = [self.value(field)]
        while self.take(","):
            values.append(self.value(field))
        self.need(")")
        return Among(field.name, tuple(values))

    def like(self, field: pa.Field) -> Condition:
        """The pattern after ``like``."""
        self.need("like")
        if not pa.types.is_string(field.type):
            raise self.error("uses like on a column that is not text")
        return Like(field.name, str(self.value(field)))

    def value(self, field: pa.Field) -> Value:
        """A literal of the column's type."""
        if self.place >= len(self.tokens):
            raise self.error("ends where a value is needed")
        kind, text, _ = self.tokens[self.place]
        try:
            value = _literal(kind, text, field.type)
        except ValueError as error:
            raise self.error(str(error), fix=_EXAMPLES[_family(field.type)]) from None
        self.place += 1
        return value


_EXAMPLES = {
    "bool": "compare it with true or false",
    "int": "compare it with a whole number, such as 2020",
    "float": "compare it with a number, such as 0.5",
    "text": 'put the text in quotes, such as "red"',
}


def _family(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int"
    return "float" if pa.types.is_floating(kind) else "text"


def _literal(kind: str, text: str, column: pa.DataType) -> Value:
    """The value of a token for a column of that type; ValueError says why it has none."""
    family = _family(column)
    if family == "text" and kind == "string":
        value = text[1:-1].replace(text[0] * 2, text[0])
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("has a text that is not valid Unicode") from None
        return value
    if family == "bool" and kind == "word" and text in ("true", "false"):
        return text == "true"
    if family == "int" and kind == "number":
        number = float(text)
        if not re.fullmatch(r"[+-]?\d+", text) and number != math.floor(number):
            raise ValueError("compares a column of whole numbers with a fraction")
        whole = int(text) if re.fullmatch(r"[+-]?\d+", text) else int(number)
        bits = column.bit_width - 1
        if not -(2**bits) < whole < 2**bits:
            raise ValueError(f"has a number beyond what the column holds ({column})")
        return whole
    if family == "float" and kind == "number":
        number = float(text) + 0.0  # no negative zero: engines order it below zero
        if not math.isfinite(number):
            raise ValueError("has a number too large for the column")
        return number
    raise ValueError("compares a column with a value of another type")
