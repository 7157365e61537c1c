"""What the frozen layers below an adapter give for every training row, computed once.

If the first n layers of a tower are not adapted and a row enters them unchanged in every epoch,
their output is always the same. It is computed before the first step, kept in the cache folder
(``features/prefix``) under a hash of the backbone, the rows' content as the model sees it, the
precision and n, and training starts behind it. Values are stored in the type in which they were
computed, so nothing is rounded; before a cache is used, features of a few rows are made both ways
and must agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crossadapt.backbones.base import TokenBatch, Tower
from crossadapt.backbones.precision import Precision
from crossadapt.backbones.prefix import hidden_after, standing_in
from crossadapt.backbones.tokenizing import cut
from crossadapt.data.files import cache_dir
from crossadapt.errors import UserError
from crossadapt.files import make_folder
from crossadapt.tasks.encode import Pixels, evaluating, stack_pixels
from crossadapt.tasks.prefix_store import PrefixStore, clean, room

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

_FORMAT = 1
_PROBE = 8
_BLOCK = 256
# Relative error of a feature. The same sums in another order, because a kernel is chosen by the
# number of rows; a wrong layer or row is off by far more.
_AGREE = {"fp32": 1e-4, "bf16": 3e-2}
WORTH = 2.0


@dataclass(frozen=True)
class PrefixNote:
    """What was done for one stream: `reason` says why nothing was, and is empty otherwise."""

    stream: str
    layers: int
    bytes: int
    folder: Path
    reason: str = ""

    def facts(self) -> dict[str, Any]:
        """For the event log."""
        return {
            "stream": self.stream,
            "below_layer": self.layers,
            "bytes": 0 if self.reason else self.bytes,
            "folder": str(self.folder),
            "reason": self.reason,
        }

    def sentence(self) -> str:
        """For a person."""
        if self.reason:
            return f"{self.stream}: prefix below layer {self.layers} not cached: {self.reason}"
        return (
            f"{self.stream}: prefix cached below layer {self.layers}, "
            f"{self.bytes / 1e6:,.1f} MB in {self.folder}"
        )


@dataclass(frozen=True)
class Rows:
    """Rows of one stream as they enter the model.

    `lengths` are their tokens, None where the first row tells that of all. `encode` runs the
    encoder on some rows; `digest` adds the content of all rows to a hash.
    """

    stream: str
    tower: Tower
    count: int
    lengths: np.ndarray | None
    encode: Callable[[np.ndarray], Tensor]
    digest: Callable[[Any], None]


def picture_rows(backbone: Backbone, pixels: Pixels) -> Rows:
    """All pictures, uint8 (3, H, W) each."""

    def encode(rows: np.ndarray) -> Tensor:
        batch = stack_pixels(pixels, rows).to(backbone.device)
        return backbone.encode_image(backbone.preprocess.normalise(batch))

    def digest(found: Any) -> None:
        for start in range(0, len(pixels), _BLOCK):
            block = range(start, min(start + _BLOCK, len(pixels)))
            found.update(stack_pixels(pixels, block).contiguous().numpy().data)

    return Rows("image", "vision", len(pixels), None, encode, digest)


def text_rows(backbone: Backbone, tokens: TokenBatch) -> Rows:
    """All texts, ids and mask (N, L). Only what their mask keeps is stored.

    That is exact: a family whose towers read padding marks it as text.
    """
    places = torch.arange(1, tokens.mask.shape[1] + 1)
    lengths = (tokens.mask * places).amax(dim=1).numpy()

    def encode(rows: np.ndarray) -> Tensor:
        batch = cut(TokenBatch(tokens.ids[rows], tokens.mask[rows]))
        return backbone.encode_text(batch.ids.to(backbone.device), batch.mask)

    def digest(found: Any) -> None:
        found.update(tokens.ids.contiguous().numpy().data)
        found.update(tokens.mask.contiguous().numpy().data)

    return Rows("text", "text", len(tokens.ids), lengths, encode, digest)


class PrefixCache:
    """The cached rows of one stream; `note` says what became of it."""

    def __init__(self, tower: Tower, layers: int, store: PrefixStore, note: PrefixNote) -> None:
        self.tower, self.layers, self.store, self.note = tower, layers, store, note

    def hidden(self, rows: np.ndarray, length: int | None = None) -> Tensor:
        """Hidden states (B, length, width) of rows; the longest row's length when not given."""
        return self.store.read(rows, length or int(self.store.lengths[rows].max()))

    def encode(self, backbone: Backbone, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Features (B, D) from hidden states; of texts with their `ids` (B, L)."""
        with standing_in(backbone, self.tower, self.layers, hidden):
            if ids is None:
                return backbone.encode_image(hidden)
            return backbone.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))


def open_prefix(
    backbone: Backbone,
    rows: Rows,
    layers: int,
    precision: Precision,
    passes: float,
    folder: Path | None = None,
) -> tuple[PrefixCache | None, PrefixNote]:
    """The cache of a stream, made if that is worth it, and what is to be said about it.

    Args:
        backbone: with the adapter attached.
        rows: of the stream.
        layers: of its tower that nobody adapts, 1 or more.
        precision: of training.
        passes: how often a row will be encoded on average; below `WORTH` nothing is made.
        folder: of all such caches; None for the user's.

    A full or read-only disk, a cache beyond half of the free disk, or features that do not agree:
    there is no cache and the note's reason says why; training encodes the rows as ever.
    """
    base = folder or cache_dir() / "features" / "prefix"
    place = base / _key(backbone, rows, layers, precision)

    def hidden(index: np.ndarray) -> Tensor:
        with torch.no_grad(), precision.autocast():
            return hidden_after(backbone, rows.tower, layers, lambda: rows.encode(index))

    def refused(reason: str, size: int = 0) -> tuple[None, PrefixNote]:
        return None, PrefixNote(rows.stream, layers, size, place, reason)

    try:
        first = hidden(np.arange(min(_PROBE, rows.count)))
        whole = np.full(rows.count, first.shape[1], np.int64)
        lengths = whole if rows.lengths is None else rows.lengths
        store = PrefixStore(place, lengths, first.shape[2], first.dtype)
        missing = store.missing
        if missing:
            if passes < WORTH:
                return refused(f"rows are encoded {passes:.1f} times on average", store.size)
            clean(make_folder(base))
            free = room(base)
            if store.size > free:
                return refused(
                    f"it would take {store.size / 1e9:.1f} GB of at most {free / 1e9:.1f} GB "
                    "(half of the free disk)",
                    store.size,
                )

            def compute(index: np.ndarray) -> list[Tensor]:
                return [h[:n] for h, n in zip(hidden(index), lengths[index], strict=True)]

            store.fill(compute, missing)
        else:
            store.open()
    except (UserError, OSError) as error:
        return refused(str(getattr(error, "what", error)))
    cache = PrefixCache(
        rows.tower, layers, store, PrefixNote(rows.stream, layers, store.size, place)
    )
    wrong = _disagreement(backbone, rows, cache, precision)
    if wrong > _AGREE[precision.name]:
        return refused(f"features from it differ by {wrong:.2g}", store.size)
    return cache, cache.note


def _key(backbone: Backbone, rows: Rows, layers: int, precision: Precision) -> str:
    """Hash of all that decides the values."""
    attention = getattr(backbone, "attention", {}).get(rows.tower)
    words = [_FORMAT, backbone.fingerprint, rows.stream, rows.count, layers, precision.name]
    facts = [*words, attention, str(backbone.device), torch.__version__, version("transformers")]
    found = hashlib.sha256(repr(facts).encode())
    rows.digest(found)
    return found.hexdigest()[:32]


def _disagreement(
    backbone: Backbone, rows: Rows, cache: PrefixCache, precision: Precision
) -> float:
    """Largest relative error of features from the cache, over rows from all of it."""
    index = np.unique(np.linspace(0, rows.count - 1, _PROBE).astype(np.int64))
    with evaluating(backbone), torch.no_grad():
        with precision.autocast():
            wanted = rows.encode(index).float()
        hidden = cache.hidden(index).to(backbone.device)
        with precision.autocast(), standing_in(backbone, cache.tower, cache.layers, hidden):
            found = rows.encode(index).float()
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())
