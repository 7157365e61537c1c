"""Where an indexing job writes: the collection, opened or made, and the embedder that fits it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossadapt.adapters.reading import read_adapter_config
from crossadapt.errors import UserError
from crossadapt.search.card import ATTRIBUTE_TYPES, FROZEN, Card, View, check_name
from crossadapt.search.collection import Collection, Collections
from crossadapt.search.embedder import Embedder

PENDING = "pending"
"""Fact on the card: views whose vectors may be missing in some rows."""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for: see `crossadapt.search.indexing.IndexJob`."""

    name: str
    store: str | None
    backbone: str | None
    adapters: Mapping[str, Path]
    frozen: bool
    device: str
    precision: str


def adapter_names(given: Sequence[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` or ``FOLDER`` (named after its last part) to name and absolute folder.

    Raises:
        UserError: no name, or the same name twice.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).expanduser().is_dir():
            folder = text
            name = Path(text).expanduser().absolute().name.replace(".", "-").replace(" ", "-")
        if not name or not folder:
            raise UserError(
                "an adapter needs a name and a folder",
                where=f"--adapter {text}",
                fix="write NAME=FOLDER, or the folder alone",
            )
        if name in found:
            raise UserError(
                f"two adapters are named {name!r}",
                where=f"--adapter {text}",
                fix="write NAME=FOLDER with another name",
            )
        found[name] = Path(folder).expanduser().absolute()
    return found


def existing_card(wanted: Wanted) -> Card | None:
    """The collection's card, None if there is no such collection yet."""
    check_name(wanted.name)
    home = Collections(wanted.store)
    return home.open(wanted.name).card if wanted.name in home.names() else None


def open_embedder(wanted: Wanted, card: Card | None) -> Embedder:
    """The backbone with the adapters of the job and of the views that the collection has.

    Raises:
        UserError: another backbone than the collection's, or an adapter of it is gone or changed.
    """
    adapters = dict(wanted.adapters)
    for view in card.views if card is not None else ():
        if view.name != FROZEN and view.name not in adapters:
            if not (Path(view.adapter) / "adapter_config.json").is_file():
                raise UserError(
                    f"the adapter of view {view.name!r} is gone, and new items need its vectors",
                    where=view.adapter or wanted.name,
                    fix=f"give it a folder: --adapter {view.name}=FOLDER",
                )
            adapters[view.name] = Path(view.adapter)
    if not wanted.frozen and not adapters:
        raise UserError(
            "nothing to embed with",
            where="--no-frozen",
            fix="give an adapter, or leave --no-frozen out",
        )
    source, precision = wanted.backbone, wanted.precision
    if card is not None:
        source = source or card.backbone
        # Vectors of two number formats differ a little; a collection keeps to one.
        if precision == "auto" and card.precision:
            precision = card.precision
    if source is None and adapters:
        source = str(read_adapter_config(next(iter(adapters.values())))["backbone"]["source"])
    # The backbone is checked before adapters are: "another backbone" says more than "does not fit".
    embedder = Embedder.open(source, device=wanted.device, precision=precision)
    if card is not None:
        _same_backbone(wanted, card, embedder)
    for name, folder in adapters.items():
        embedder.add(name, folder)
    for view in card.views if card is not None else ():
        if view.name in wanted.adapters or view.fingerprint == embedder.fingerprint(view.name):
            continue
        raise UserError(
            f"the adapter of view {view.name!r} has changed since the collection was made",
            where=view.adapter,
            fix=f"to embed everything again with it, add --adapter {view.name}={view.adapter}",
        )
    return embedder


def _same_backbone(wanted: Wanted, card: Card, embedder: Embedder) -> None:
    if card.backbone_fingerprint == embedder.backbone.fingerprint and card.dim == embedder.dim:
        return
    paths = " ".join(map(shlex.quote, card.facts.get("sources", []))) or "PATH"
    store = f" --store {shlex.quote(wanted.store)}" if wanted.store else ""
    again = f"crossadapt index {paths} --collection {wanted.name} "
    again += f"--backbone {embedder.backbone.source}{store}"
    raise UserError(
        f"collection {wanted.name!r} was made with another backbone: {card.backbone} "
        f"({card.dim} values, {card.backbone_fingerprint[:12]}), this one is "
        f"{embedder.backbone.source} ({embedder.dim}, {embedder.backbone.fingerprint[:12]})",
        where=f"collection {wanted.name}",
        fix=f"index under another name, or embed everything again: "
        f"crossadapt collection drop {wanted.name}{store}, then {again}",
    )


def open_target(
    wanted: Wanted,
    embedder: Embedder,
    types: Mapping[str, str],
    sources: Sequence[str],
    clips: Mapping[str, Any] | None = None,
) -> Collection:
    """The collection, open for writing, with a column for every view and attribute.

    A view whose adapter is another than before is emptied; new and emptied views are noted on the
    card as pending until every row has them, so that a killed job leaves no hole unnoticed.
    With `clips`, the rule by which clips are looked at, there are columns for their frames too.
    """
    home = Collections(wanted.store)
    names = [FROZEN] if wanted.frozen else []
    views = {name: embedder.view(name) for name in (*names, *wanted.adapters)}
    if wanted.name not in home.names():
        card = Card(
            wanted.name,
            embedder.dim,
            embedder.backbone.source,
            embedder.backbone.fingerprint,
            tuple(views.values()),
            attributes=dict(types),
            precision=embedder.precision.name,
            facts={"sources": list(sources)},
            clips=dict(clips or {}),
        )
        return home.create(card)
    collection = home.open(wanted.name, write=True)
    try:
        _extend(collection, views, dict(types), bool(wanted.adapters))
        if clips and not collection.card.clips:
            collection.update_card(clips=dict(clips))
    except BaseException:
        collection.close()
        raise
    return collection


def _extend(
    collection: Collection, views: Mapping[str, View], types: dict[str, str], adapted: bool
) -> None:
    card = collection.card
    for name, kind in card.attributes.items():
        if types.get(name, kind) != kind:  # settled against an older card
            raise UserError(
                f"column {name!r} changes its type: the collection has {kind}, not {types[name]}",
                where=card.name,
                fix="rename the column, or index into a new collection",
            )
    before = {view.name: view for view in card.views}
    other = [n for n, v in views.items() if n in before and before[n].fingerprint != v.fingerprint]
    kept = [view for view in card.views if view.name not in other]
    if other and not kept:
        # A collection needs a view; without rows there is nothing that could get mixed up.
        for batch in list(collection.scan(["id"])):
            collection.delete(batch.column("id").to_pylist())
    elif other:
        collection.update_card(views=tuple(kept))
    current = {view.name: view for view in collection.card.views}
    merged = current | dict(views)
    attributes = card.attributes | {n: k for n, k in types.items() if k in ATTRIBUTE_TYPES}
    pending = [name for name in merged if name not in current]
    pending = list(dict.fromkeys([*card.facts.get(PENDING, []), *other, *pending]))
    if merged == before and attributes == card.attributes and not other:
        return
    collection.update_card(
        views=tuple(merged.values()),
        attributes=attributes,
        default_view=list(views)[-1] if adapted else card.default_view,
        facts=card.facts | {PENDING: pending},
    )
