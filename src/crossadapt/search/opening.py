"""The embedder that a collection's card asks for, and a refusal when it is no longer there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from crossadapt.errors import UserError
from crossadapt.search.binding import command
from crossadapt.search.card import FROZEN, View

if TYPE_CHECKING:
    from crossadapt.search.collection import Collection
    from crossadapt.search.embedder import Embedder


def open_embedder(
    collection: Collection, views: Iterable[str] | None = None, *, device: str = "auto"
) -> Embedder:
    """Load a collection's backbone and the adapters of its views; check that they are the same.

    Args:
        collection: open.
        views: those that will be searched; all of the card unless given. An adapter that is not
            needed may be gone.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: an unknown view, or the backbone or an adapter is gone or has changed since the
            collection was made; the command that embeds again is named.
    """
    card = collection.card
    wanted = [card.view(name) for name in (card.view_names if views is None else views)]
    adapters = {view.name: _folder(view, collection) for view in wanted if view.name != FROZEN}
    from crossadapt.search.embedder import Embedder

    # Queries are embedded in the number format of the items, or they would differ a little more.
    precision = card.precision if card.precision in ("bf16", "fp32") else "auto"
    embedder = Embedder.open(card.backbone, adapters, device=device, precision=precision)
    collection.require({view.name: embedder.fingerprint(view.name) for view in wanted})
    return embedder


def _folder(view: View, collection: Collection) -> str:
    if not (Path(view.adapter) / "adapter_config.json").is_file():
        raise UserError(
            f"the adapter of view {view.name!r} is gone",
            where=view.adapter or f"collection {collection.card.name!r} names no folder",
            fix="put the folder back, or embed again with another one as --adapter: "
            + command(collection.card, collection._home.uri, view.name, view),
        )
    return view.adapter
