"""Models behind the collections: one per backbone, with the adapters of all collections on it.

Adapters are known to the model by their fingerprint, not by the name a collection gives them. So
two collections that call different adapters ``default`` do not meet, two that use the same adapter
share it, and one that was trained again is another adapter.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.errors import UserError
from crossadapt.search.binding import command
from crossadapt.search.calibration import null_queries
from crossadapt.search.card import FROZEN, Card, View

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from PIL import Image

    from crossadapt.backbones.hf import HFBackbone
    from crossadapt.backbones.precision import Precision
    from crossadapt.search.collection import Collection
    from crossadapt.search.embedder import Embedder


@dataclass
class Engine:
    """One backbone and how many collections use each adapter on it."""

    embedder: Embedder
    parameters: int
    """Parameters of the backbone alone."""
    used: Counter[str] = field(default_factory=Counter)
    nulls: dict[str, np.ndarray] = field(default_factory=dict)
    """Vectors of the null queries by view."""


class Bound:
    """An engine as one collection sees it: by the names of its own views.

    Offers what `crossadapt.search.calibration.Calibration`, the batcher and the re-ranker need of
    an embedder.
    """

    def __init__(self, engine: Engine, names: dict[str, str]) -> None:
        self.engine, self.names = engine, names

    @property
    def backbone(self) -> HFBackbone:
        """The model."""
        return self.engine.embedder.backbone

    @property
    def precision(self) -> Precision:
        """Its number format."""
        return self.engine.embedder.precision

    def alone(self, view: str) -> AbstractContextManager[HFBackbone]:
        """The backbone with the adapter of a view, and nobody else's."""
        return self.engine.embedder.alone(self.names[view])

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A picture as the model sees it, uint8 (3, H, W)."""
        return self.engine.embedder.prepare(image)

    def texts(self, texts: Sequence[str], views: str | Sequence[str] = FROZEN) -> np.ndarray:
        """Unit vectors, float32 (N, D)."""
        if isinstance(views, str) and texts is null_queries():
            # A constant: hundreds of texts that would be embedded again for every version of a
            # collection that is being written.
            name = self.names[views]
            if name not in self.engine.nulls:
                self.engine.nulls[name] = self.engine.embedder.texts(texts, name)
            return self.engine.nulls[name]
        named = self.names[views] if isinstance(views, str) else [self.names[v] for v in views]
        return self.engine.embedder.texts(texts, named)

    def pictures(self, pixels: np.ndarray, views: str | Sequence[str] = FROZEN) -> np.ndarray:
        """Unit vectors, float32 (N, D)."""
        named = self.names[views] if isinstance(views, str) else [self.names[v] for v in views]
        return self.engine.embedder.pictures(pixels, named)


class Engines:
    """All models of a server; safe to use from several threads.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device = device
        self._engines: dict[tuple[str, str], Engine] = {}
        self._lock = threading.Lock()

    def bind(self, collection: Collection, uri: str) -> Bound:
        """The model a collection was made with; backbone and adapters are loaded when missing.

        Args:
            collection: open.
            uri: of its store, for messages.

        Raises:
            UserError: the backbone or an adapter is gone, or is another than the one the
                collection was made with; the command that embeds again is named.
        """
        card = collection.card
        with self._lock:
            engine = self._engine(card)
            names, found, added = {}, {}, []
            try:
                for view in card.views:
                    names[view.name] = name = _name(view)
                    if name != FROZEN and name not in engine.embedder.names:
                        _add(engine.embedder, name, view, card, uri)
                        added.append(name)
                    found[view.name] = engine.embedder.fingerprint(name)
                collection.require(found)
            except UserError:
                for name in added:
                    engine.embedder.remove(name)
                raise
            engine.used.update(names.values())
            return Bound(engine, names)

    def release(self, bound: Bound) -> None:
        """Say that a collection no longer uses its model; unused adapters are freed."""
        with self._lock:
            engine = bound.engine
            engine.used.subtract(bound.names.values())
            for name in set(bound.names.values()) - {FROZEN}:
                if engine.used[name] <= 0:
                    engine.embedder.remove(name)
                    del engine.used[name]
                    engine.nulls.pop(name, None)

    def _engine(self, card: Card) -> Engine:
        # Queries are embedded in the number format of the items, or they would differ more.
        precision = card.precision if card.precision in ("bf16", "fp32") else "auto"
        key = (card.backbone_fingerprint or card.backbone, precision)
        if key not in self._engines:
            from crossadapt.search.embedder import Embedder

            options: dict[str, Any] = {"device": self.device, "precision": precision}
            embedder = Embedder.open(card.backbone, **options)
            count = sum(parameter.numel() for parameter in embedder.backbone.parameters())
            self._engines[key] = Engine(embedder, count)
        return self._engines[key]


def _add(embedder: Embedder, name: str, view: View, card: Card, uri: str) -> None:
    try:
        embedder.add(name, view.adapter)
    except UserError as error:
        raise UserError(
            f"the adapter of view {view.name!r} cannot be loaded: {error.what}",
            where=view.adapter or f"collection {card.name!r} names no folder",
            fix="put the folder back as it was, or embed again: "
            + command(card, uri, view.name, view),
        ) from error


def _name(view: View) -> str:
    """What an engine calls a view."""
    return FROZEN if view.name == FROZEN else f"a{view.fingerprint[:24]}"
