"""What a collection is, apart from its rows: views, attributes, fingerprints, measured facts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from crossadapt.errors import UserError, did_you_mean

FORMAT = 1
"""The newest layout of a stored collection that this program reads; it writes this one."""

FROZEN = "frozen"
"""Name of the view without an adapter."""

ATTRIBUTE_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
}

_COLUMNS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("item", pa.string()),
    pa.field("kind", pa.string()),
    pa.field("texts", pa.list_(pa.string())),
    pa.field("group", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("bytes", pa.int64()),
    pa.field("modified", pa.float64()),
    pa.field("duration", pa.float64()),
    pa.field("thumbnail", pa.binary()),
    pa.field("added", pa.timestamp("us", tz="UTC")),
)
_MOMENTS = (
    pa.field("times", pa.list_(pa.float64())),
    pa.field("stills", pa.list_(pa.binary())),
)
FILTERABLE = ("item", "kind", "group", "width", "height", "bytes", "duration")
"""Columns of every collection that filters may name, beside its attributes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ATTRIBUTE = re.compile(r"\w(?:[\w .-]{0,98}[\w.-])?")


@dataclass(frozen=True)
class View:
    """One set of embeddings of a collection: of the frozen model, or of one adapter."""

    name: str
    """``frozen``, or the name the adapter has here."""
    fingerprint: str = ""
    """Hash of the backbone and the adapter's tensors; another value means other vectors."""
    adapter: str = ""
    """Folder of the adapter; empty for the frozen model."""
    method: str = ""
    """The adapter's method; empty for the frozen model."""
    trained: int = 0
    """Trained parameters of the adapter."""


@dataclass(frozen=True)
class Card:
    """Everything about a collection that is not a row; stored with it, in the same version."""

    name: str
    """Letters, digits, ``-``, ``_`` and ``.``; the first is a letter or a digit."""
    dim: int
    """Length of the vectors."""
    backbone: str
    """What the backbone was loaded from."""
    backbone_fingerprint: str = ""
    views: tuple[View, ...] = (View(FROZEN),)
    default_view: str = ""
    """The view a search uses when none is named; the last one unless given."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Attribute to type: bool, int, float or string."""
    format: int = FORMAT
    created: str = ""
    """ISO time of its creation, UTC."""
    precision: str = ""
    """What the embeddings were computed in."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Measured along the way: index and its recall, calibration, summary of the ledger."""
    clips: dict[str, Any] = field(default_factory=dict)
    """``frames`` and ``sampling`` of clips; empty as long as there are only pictures."""
    uid: str = ""
    """Given at creation: tells a collection from an earlier one of the same name."""

    def __post_init__(self) -> None:
        """Refuse a card that no collection could have, naming the field."""
        check_name(self.name)
        if not self.views:
            raise UserError("a collection needs a view", where="views", fix="give at least one")
        names = self.view_names
        if len(set(names)) < len(names):
            raise UserError(f"views named twice: {', '.join(names)}", where="views")
        for name in names:
            check_name(name, "view")
        if not 0 < self.dim <= 65_536:
            raise UserError(f"dim is {self.dim}", where="dim", fix="give the vectors' length")
        if not self.default_view:
            object.__setattr__(self, "default_view", names[-1])
        self.view(self.default_view)
        for name, kind in self.attributes.items():
            if not _ATTRIBUTE.fullmatch(name):
                raise UserError(
                    f"{name[:100]!r} cannot name an attribute",
                    where="attributes",
                    fix="rename it: up to 100 letters, digits, spaces, - _ and .",
                )
            if kind not in ATTRIBUTE_TYPES:
                raise UserError(
                    f"attribute {name!r} has the unknown type {kind!r}",
                    where="attributes",
                    fix=did_you_mean(kind, ATTRIBUTE_TYPES),
                )
        for what, known in (("views", names), ("attributes", tuple(self.attributes))):
            if len({_stored(name) for name in known}) < len(known):
                raise UserError(
                    "two names differ only in how their signs are stored", where=what,
                    fix=f"rename one of: {', '.join(known)}",
                )  # fmt: skip

    @property
    def view_names(self) -> tuple[str, ...]:
        """Names of the views in order."""
        return tuple(view.name for view in self.views)

    def view(self, name: str | None = None) -> View:
        """The view of that name, or the default one.

        Raises:
            UserError: there is none; the nearest is named.
        """
        wanted = name or self.default_view
        for view in self.views:
            if view.name == wanted:
                return view
        raise UserError(
            f"collection {self.name!r} has no view {wanted!r}",
            where="view",
            fix=did_you_mean(wanted, self.view_names),
        )

    @property
    def schema(self) -> pa.Schema:
        """The columns its rows have; see `attribute_column` and `vector_column` for their names."""
        attributes = [
            pa.field(attribute_column(name), ATTRIBUTE_TYPES[kind])
            for name, kind in self.attributes.items()
        ]
        vectors = [
            pa.field(vector_column(name), pa.list_(pa.float32(), self.dim))
            for name in self.view_names
        ]
        moments = []
        if self.clips:
            # The vectors of a clip's frames one after another: clips have unequal numbers of them.
            frames = pa.list_(pa.float32())
            moments = [*_MOMENTS, *(pa.field(frames_column(n), frames) for n in self.view_names)]
        return pa.schema([*_COLUMNS, *moments, *attributes, *vectors])

    @property
    def filterable(self) -> dict[str, pa.Field]:
        """The name a filter uses to the stored column."""
        schema = self.schema
        names = {name: schema.field(name) for name in ("id", *FILTERABLE)}
        # An attribute may have the name of a fixed column; the fixed column keeps it.
        return {n: schema.field(attribute_column(n)) for n in self.attributes} | names

    def changed(self, **changes: Any) -> Card:
        """A copy with other values; `default_view` follows if its view is gone."""
        card = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | changes
        if card["default_view"] not in {view.name for view in card["views"]}:
            card["default_view"] = ""
        return Card(**card)

    def to_json(self) -> str:
        """The card as one JSON document."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, where: str = "") -> Card:
        """Read what `to_json` wrote.

        Raises:
            UserError: it is not a card, or a newer program wrote it.
        """
        try:
            values = json.loads(text)
            newest = int(values["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                "this is not a collection of crossadapt",
                where=where,
                fix="give another name, or drop it and index again",
            ) from error
        if newest > FORMAT:
            raise UserError(
                f"the collection has format {newest}; this program reads up to {FORMAT}",
                where=where,
                fix="upgrade crossadapt: pip install --upgrade crossadapt",
            )
        known = {f.name for f in dataclasses.fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        return cls(**values | {"views": tuple(View(**view) for view in values["views"])})


def vector_column(view: str) -> str:
    """The column that holds a view's vectors."""
    return f"vector_{_stored(view)}"


def frames_column(view: str) -> str:
    """The column that holds the vectors of a clip's frames in a view, (F * D,)."""
    return f"frames_{_stored(view)}"


def attribute_column(name: str) -> str:
    """The column that holds an attribute."""
    return f"attr_{_stored(name)}"


def _stored(name: str) -> str:
    # LanceDB takes a dot for a nested field and cannot extend an index over other signs.
    return re.sub(r"[^A-Za-z0-9_]", lambda sign: f"_{ord(sign[0]):x}_", name)


def check_name(name: str, what: str = "collection") -> str:
    """`name` itself if a collection, a view or an attribute may have it.

    Raises:
        UserError: it is empty, too long, or has other characters than letters, digits, - _ .
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise UserError(
            f"{name[:100]!r} cannot name a{'n' if what[0] in 'aeiou' else ''} {what}",
            where=f"{what} name",
            fix="use up to 100 letters, digits, - _ and . (no two dots in a row), "
            "beginning with a letter or digit",
        )
    return name


def missing_columns(names: Iterable[str], schema: Mapping[str, Any] | pa.Schema) -> list[str]:
    """Those of `names` that `schema` does not have, in order."""
    known = set(schema.names if isinstance(schema, pa.Schema) else schema)
    return [name for name in names if name not in known]
