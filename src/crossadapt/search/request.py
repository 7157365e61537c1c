"""What can be asked: the query, its limits, and the check of everything before a model runs.

The parts of a query are **text**, one **picture** (uploaded bytes, or an item of the collection for
"more like this") and **excluded** words. `prepare` turns them into a `Prepared`: texts and pixels
that only need embedding, everything else verified. `query` does the rest.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.errors import UserError, did_you_mean
from crossadapt.search import filter_parser
from crossadapt.search.card import FROZEN, vector_column
from crossadapt.search.query_picture import LIMITS, Limits, prepared_pixels

if TYPE_CHECKING:
    from PIL import Image

    from crossadapt.search.card import Card
    from crossadapt.search.collection import Collection

_MAX_ID = 128


@dataclass(frozen=True)
class Query:
    """One question to a collection; give at least one of `text`, `image` and `like`."""

    text: str = ""
    """Words to look for."""
    image: bytes | None = None
    """An encoded picture (JPEG, PNG, WebP, …) to look for."""
    like: str = ""
    """Id of an item of the collection: more like this. The item itself is left out."""
    exclude: str = ""
    """Words whose direction is taken out of the query; see `query.without`."""
    weight: float = 0.5
    """Share of the text, in [0, 1], when there is a text and a picture (or a liked item)."""
    k: int = 10
    """How many hits."""
    filter: str = ""
    """Only items that pass, for example ``colour = "red" and year >= 2020``."""
    view: str | None = None
    """Which embeddings; the collection's default view when None."""
    strength: float = 1.0
    """How much of the adapter, in [0, 1]: 0 is the frozen model, between them both are blended."""
    exact: bool = False
    """Compare with every item, although an index would be faster."""
    compare: bool = False
    """Also return what the frozen model finds, and where it ranks each hit."""
    rerank: int = 0
    """How many of the nearest items the fusion tower judges and sorts anew; 0 for none."""


@dataclass(frozen=True)
class Prepared:
    """A valid query, ready to be embedded.

    Vectors are needed for every text in `texts`, and for `pixels` if there are any, in every view
    of `views`; that is all a batcher has to know.
    """

    query: Query
    """The query, its texts cleaned."""
    view: str
    """The view searched."""
    views: tuple[str, ...]
    """The views in which texts and pixels are needed."""
    texts: tuple[str, ...]
    """The text if there is one, then the excluded words if there are any."""
    pixels: np.ndarray | None = None
    """The picture, uint8 (1, 3, H, W)."""
    liked: dict[str, np.ndarray] = field(default_factory=dict)
    """Vector (D,) of the liked item by view; empty without one."""
    notes: tuple[str, ...] = ()
    """What the asker should know."""

    @property
    def strength(self) -> float:
        """Strength in effect; the frozen view has only one."""
        return 1.0 if self.view == FROZEN else self.query.strength


def prepare(
    query: Query,
    collection: Collection,
    limits: Limits = LIMITS,
    *,
    transform: Callable[[Image.Image], np.ndarray] | None = None,
    picture_name: str = "image",
) -> Prepared:
    """Check a query against a collection and bring its parts into the form a model reads.

    Args:
        query: what is asked.
        collection: an open collection.
        limits: the largest query that is accepted.
        transform: ``embedder.prepare``: RGB picture to uint8 (3, H, W); needed for a picture.
        picture_name: what to call the picture in errors, such as its file name.

    Raises:
        UserError: nothing is asked, a value is out of range, the picture cannot be read or is too
            large, the filter is wrong, or the
            view or the item does not exist.
    """
    query, view, views, notes = _checked(query, collection.card, limits)
    return Prepared(
        query=query,
        view=view,
        views=views,
        texts=tuple(part for part in (query.text, query.exclude) if part),
        pixels=prepared_pixels(query.image, limits, transform, picture_name),
        liked=_liked(query.like, views, collection),
        notes=notes,
    )


def check(query: Query, collection: Collection, limits: Limits = LIMITS) -> tuple[str, ...]:
    """Check all of a query but its picture and its item, without a model.

    Returns:
        The views whose vectors it needs.

    Raises:
        UserError: as `prepare`.
    """
    return _checked(query, collection.card, limits)[2]


def _checked(
    query: Query, card: Card, limits: Limits
) -> tuple[Query, str, tuple[str, ...], tuple[str, ...]]:
    """The query with clean texts, the view searched, the views needed, and notes."""
    text = _clean(query.text, "text", limits)
    exclude = _clean(query.exclude, "exclude", limits)
    query = replace(query, text=text, exclude=exclude, like=query.like.strip())
    _check_parts(query)
    _check_numbers(query, limits)
    _check_rerank(query, limits)
    filter_parser.parse(query.filter, card.filterable)
    return query, *_views(query, card)


def _clean(text: Any, name: str, limits: Limits) -> str:
    """One line of text, or an empty string when nothing in it can be seen."""
    if not isinstance(text, str):
        raise UserError(f"{name} is not a text but {type(text).__name__}", where=name)
    if len(text) > limits.max_text:
        raise UserError(
            f"the text has {len(text):,} characters, the limit is {limits.max_text:,}",
            where=name,
            fix="describe what you look for in a sentence; models read a few dozen words at most",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            "the text is not valid Unicode (it holds half of a surrogate pair)",
            where=f"{name}, character {error.start + 1}",
            fix="send it as UTF-8",
        ) from None
    text = " ".join(text.split())
    # Letters, marks, numbers, punctuation and symbols (emoji) can be seen; controls cannot.
    return text if any(unicodedata.category(character)[0] in "LMNPS" for character in text) else ""


def _check_parts(query: Query) -> None:
    if query.image is not None and query.like:
        raise UserError(
            "a query has one picture: a file or an item, not both",
            where="image and like",
            fix="leave one of them out",
        )
    if query.text or query.image is not None or query.like:
        return
    if query.exclude:
        raise UserError(
            "words are excluded but nothing is looked for",
            where="exclude",
            fix="also give a text, a picture or an item id",
        )
    raise UserError(
        "the query is empty",
        where="text, image, like",
        fix='give a text such as "red door", a picture, or the id of an item',
    )


def _check_rerank(query: Query, limits: Limits) -> None:
    """Judging needs words, and the model as it is: no mixtures."""
    if not isinstance(query.rerank, int) or not 0 <= query.rerank <= limits.max_rerank:
        raise UserError(
            f"rerank is {query.rerank!r}",
            where="rerank",
            fix=f"judge between 1 and {limits.max_rerank:,} hits",
        )
    if not query.rerank:
        return
    if not query.text:
        raise UserError("re-ranking needs words", where="rerank", fix="give a text")
    for name in ("image", "like", "exclude", "compare"):
        if getattr(query, name):
            raise UserError(
                f"re-ranking judges words and pictures, not {name}",
                where=name,
                fix=f"leave out {name} or rerank",
            )
    if query.strength < 1:
        raise UserError(
            "re-ranking uses the adapter as trained", where="strength", fix="leave out strength"
        )


def _check_numbers(query: Query, limits: Limits) -> None:
    if isinstance(query.k, bool) or not isinstance(query.k, int):
        raise UserError(f"k is {query.k!r}, not a whole number", where="k")
    if not 1 <= query.k <= limits.max_k:
        raise UserError(
            f"k is {query.k:,}", where="k", fix=f"ask for between 1 and {limits.max_k:,} hits"
        )
    for name in ("weight", "strength"):
        value = getattr(query, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= 1:
            raise UserError(f"{name} is {value!r}", where=name, fix="give a number from 0 to 1")


def _views(query: Query, card: Card) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The view searched, the views whose vectors are needed, and notes."""
    names = [view.name for view in card.views]
    view = query.view or card.default_view
    if view not in names:
        raise UserError(
            f"collection {card.name!r} has no view {view!r}",
            where="view",
            fix=did_you_mean(view, names),
        )
    blended = view != FROZEN and query.strength < 1
    if (blended or query.compare) and FROZEN not in names:
        option = "compare" if query.compare else "strength"
        raise UserError(
            f"collection {card.name!r} holds no embeddings of the frozen model",
            where=option,
            fix=f"leave {option} out, or index the data again with the frozen view",
        )
    notes = []
    if view == FROZEN and query.strength < 1:
        notes.append("strength has no effect: the frozen view was searched")
    if view == FROZEN and query.compare:
        notes.append("nothing to compare: the frozen view was searched")
    both = blended or query.compare
    return view, tuple(dict.fromkeys((view, FROZEN) if both else (view,))), tuple(notes)


def _liked(like: str, views: tuple[str, ...], collection: Collection) -> dict[str, np.ndarray]:
    if not like:
        return {}
    table = None
    if len(like) <= _MAX_ID and like.isalnum() and like.isascii():
        table = collection.get([like], list(map(vector_column, views)))
    if table is None or not len(table):
        raise UserError(
            f"collection {collection.card.name!r} has no item {like[:_MAX_ID]!r}",
            where="like",
            fix="give the id of a hit, as --json prints it",
        )
    found = {}
    for view in views:
        [vector] = table.column(vector_column(view)).to_pylist()
        found[view] = np.asarray(vector, np.float32)
    return found
