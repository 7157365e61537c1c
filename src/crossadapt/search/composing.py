"""From the parts of a query to one vector.

Each part p has a unit vector per view. At strength s it is

    u_p = normalise((1 - s) frozen_p + s view_p)

the rule that also applies to the items. Text t with weight w and picture i (or liked item) give

    q = normalise(w u_t + (1 - w) u_i)

and excluded words e take their direction out of it: q' = normalise(q - max(0, q . u_e) u_e).
An item's cosine falls by its own likeness to e times the query's likeness to e, so that items that
match the excluded words lose most; a query that points away from e is not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from crossadapt.errors import UserError
from crossadapt.search.card import FROZEN
from crossadapt.search.request import Prepared

if TYPE_CHECKING:
    from crossadapt.search.embedder import Embedder

Vectors = Mapping[str, Mapping[str, np.ndarray]]
"""By view: ``texts`` (T, D), one row per prepared text, and ``pixels`` (1, D) for a picture."""

_NOTHING_LEFT = 1e-3


def embed(prepared: Prepared, embedder: Embedder) -> dict[str, dict[str, np.ndarray]]:
    """Vectors of the texts and the picture in every view needed, all in one call per tower.

    Returns:
        By view: ``texts`` (T, D) and, for a picture, ``pixels`` (1, D); unit length float32.
    """
    found: dict[str, dict[str, np.ndarray]] = {view: {} for view in prepared.views}
    count, views = len(prepared.texts), prepared.views
    if prepared.texts:
        rows = embedder.texts(prepared.texts * len(views), [v for v in views for _ in range(count)])
        for index, view in enumerate(views):
            found[view]["texts"] = rows[index * count : (index + 1) * count]
    if prepared.pixels is not None:
        rows = embedder.pictures(np.repeat(prepared.pixels, len(views), axis=0), list(views))
        for index, view in enumerate(views):
            found[view]["pixels"] = rows[index : index + 1]
    return found


def blended(parts: Mapping[str, np.ndarray], view: str, strength: float) -> np.ndarray:
    """``normalise((1 - s) frozen + s view)`` along the last axis; `parts` are vectors by view."""
    if strength == 1 or view == FROZEN:
        return parts[view]
    return normalise((1 - strength) * parts[FROZEN] + strength * parts[view])


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Unit length along the last axis, float32; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)


def without(vectors: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Take the direction of the unit vector `excluded` (D,) out of unit `vectors` (…, D).

    ``normalise(q - max(0, q . e) e)``; a vector that points away from e stays as it is, one that
    *is* e becomes zero.
    """
    along = np.maximum(0, vectors @ excluded)[..., None]
    rest = vectors - along * excluded
    gone = np.linalg.norm(rest, axis=-1, keepdims=True) < _NOTHING_LEFT
    return normalise(np.where(gone, 0, rest))


def excluded_vector(
    prepared: Prepared, vectors: Vectors, view: str, strength: float
) -> np.ndarray | None:
    """The vector (D,) of the excluded words, or None."""
    if not prepared.query.exclude:
        return None
    return blended({v: vectors[v]["texts"][-1] for v in prepared.views}, view, strength)


def compose(prepared: Prepared, vectors: Vectors, view: str, strength: float) -> np.ndarray:
    """The query vector (D,), unit length, of one view at one strength (module docstring).

    Raises:
        UserError: nothing is left after taking out the excluded words, or text and picture cancel.
    """
    query, views = prepared.query, prepared.views
    text = picture = None
    if query.text:
        text = blended({v: vectors[v]["texts"][0] for v in views}, view, strength)
    if prepared.pixels is not None:
        picture = blended({v: vectors[v]["pixels"][0] for v in views}, view, strength)
    elif prepared.liked:
        picture = blended(prepared.liked, view, strength)
    vector = mixed(text, picture, query.weight)
    excluded = excluded_vector(prepared, vectors, view, strength)
    if excluded is not None:
        vector = without(vector, excluded)
    if not np.any(vector):
        raise UserError(
            "nothing is left of the query after the excluded words are taken out",
            where="exclude",
            fix="exclude something else than what you look for",
        )
    return vector


def mixed(text: np.ndarray | None, picture: np.ndarray | None, weight: float) -> np.ndarray:
    """Weighted sum of unit vectors (…, D), unit length; either may be missing."""
    if text is None or picture is None:
        both = text if picture is None else picture
        if both is None:
            raise ValueError("neither a text nor a picture")
        return both
    return normalise(weight * text + (1 - weight) * picture)
