"""A collection is bound to the models that made its vectors: others are refused."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from crossadapt.errors import UserError
from crossadapt.search.card import FROZEN, Card, View


def require(card: Card, uri: str, fingerprints: Mapping[str, str]) -> None:
    """Raise a `UserError` unless each view exists and has the given fingerprint.

    Args:
        card: of the collection.
        uri: of its store, for the message.
        fingerprints: view to the fingerprint of the model that will make the queries.
    """
    for name, fingerprint in fingerprints.items():
        known = next((view for view in card.views if view.name == name), None)
        if known is not None and known.fingerprint == fingerprint:
            continue
        if known is None:
            what = f"has no vectors of {name!r}"
        elif name == FROZEN:
            what = "was embedded with another model than the one given"
        else:
            what = f"was embedded with another adapter than the one given as {name!r}"
        raise UserError(
            f"collection {card.name!r} {what}",
            where=f"{uri} {card.name}: "
            f"{known.fingerprint[:12] if known else 'missing'}, wanted {fingerprint[:12]}",
            fix=f"embed it again: {command(card, uri, name, known)}",
        )


def command(card: Card, uri: str, name: str, view: View | None) -> str:
    """The command that embeds the collection's items for a view (again)."""
    sources = [str(source) for source in card.facts.get("sources", [])]
    words = ["crossadapt", "index", *(sources or ["PATH"]), "--collection", card.name]
    if name != FROZEN:
        words += ["--adapter", view.adapter if view and view.adapter else name]
    if card.backbone:
        words += ["--backbone", card.backbone]
    return shlex.join([*words, "--store", uri])
