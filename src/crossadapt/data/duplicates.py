"""Pictures and texts that occur twice, and those that leak from one split into another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossadapt.data.frame_store import Posters
from crossadapt.data.frames import manifest_spans, open_frames
from crossadapt.data.ledger import Ledger
from crossadapt.data.manifest import Manifest
from crossadapt.data.pixels import open_pixels
from crossadapt.data.stores import PixelStore

HASH_WIDTH, HASH_HEIGHT = 9, 8
THUMBNAIL = (3, 4 * HASH_HEIGHT, 4 * HASH_WIDTH)
_CHUNKS = ((0, 22), (22, 21), (43, 21))
_LEVELS, _SHARE = 32, 0.05
# Two grey levels, in units of 16 pixels x weights that add up to 1000: within flat areas the
# noise of recompression would otherwise decide the bits.
_MARGIN = 2 * 16 * 1000
_SHOWN = 5


@dataclass(frozen=True)
class Cluster:
    """Things that are the same: items (pictures) or one text with its items, and their splits."""

    members: tuple[str, ...]
    splits: tuple[str, ...]
    text: str = ""

    @property
    def leaks(self) -> bool:
        """Whether the members lie in more than one split."""
        return len(self.splits) > 1


@dataclass(frozen=True)
class DuplicateReport:
    """What `find_duplicates` found.

    Attributes:
        items: how many pictures were compared.
        texts: how many texts were compared.
        distance: largest number of differing hash bits that counts as the same picture.
        pictures: clusters of look-alike pictures of different groups.
        captions: texts that are used for several groups.
    """

    items: int
    texts: int
    distance: int
    pictures: tuple[Cluster, ...]
    captions: tuple[Cluster, ...]

    @property
    def picture_leaks(self) -> list[Cluster]:
        """Clusters of pictures that lie in several splits."""
        return [cluster for cluster in self.pictures if cluster.leaks]

    @property
    def caption_leaks(self) -> list[Cluster]:
        """Texts that occur in several splits."""
        return [cluster for cluster in self.captions if cluster.leaks]

    def to_dict(self) -> dict[str, Any]:
        """Counts and all clusters as plain values for JSON."""
        return {
            **asdict(self),
            "picture_leaks": len(self.picture_leaks),
            "caption_leaks": len(self.caption_leaks),
        }

    def render(self) -> str:
        """A few lines of text with counts and the first examples."""
        lines = [
            f"{self.items} pictures: {len(self.pictures)} sets of look-alikes, "
            f"{len(self.picture_leaks)} across splits (hash distance at most {self.distance})",
            f"{self.texts} texts: {len(self.captions)} used for several groups, "
            f"{len(self.caption_leaks)} across splits",
        ]
        for cluster in self.picture_leaks[:_SHOWN]:
            names = ", ".join(Path(name).name for name in cluster.members[:4])
            lines.append(f"  look alike in {' and '.join(cluster.splits)}: {names}")
        lines += [
            f"  same text in {' and '.join(cluster.splits)}: {cluster.text!r}"
            for cluster in self.caption_leaks[:_SHOWN]
        ]
        return "\n".join(lines)


def thumbnail(image: Image.Image) -> np.ndarray:
    """The colour miniature that pictures are compared by: uint8 (3, 32, 36)."""
    small = image.resize((THUMBNAIL[2], THUMBNAIL[1]), Image.Resampling.BOX)
    return np.asarray(small).transpose(2, 0, 1)


def difference_hash(thumbnails: np.ndarray) -> np.ndarray:
    """dHash: whether each cell of a 9 x 8 grid is clearly brighter than its right neighbour.

    Args:
        thumbnails: uint8 (N, 3, 32, 36); a cell is the mean of 4 x 4 pixels.

    Returns:
        uint64 (N,), one bit per comparison; survives resizing, recompression and brightness.
    """
    weights = np.array([299, 587, 114], np.int64)
    cells = thumbnails.reshape(len(thumbnails), 3, HASH_HEIGHT, 4, HASH_WIDTH, 4)
    grey = np.einsum("nchw,c->nhw", cells.sum(axis=(3, 5), dtype=np.int64), weights)
    bits = (grey[:, :, :-1] > grey[:, :, 1:] + _MARGIN).reshape(len(grey), 64)
    powers = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64))
    return (bits * powers).sum(1, dtype=np.uint64)


def near_pairs(hashes: np.ndarray, distance: int = 2) -> np.ndarray:
    """All pairs of hashes that differ in at most `distance` (0, 1 or 2) bits: int64 (P, 2).

    Hashes within two bits agree in at least one of three parts, so only equal parts are compared:
    the cost grows with the number of candidates, not with the square of the number of hashes.
    """
    if not 0 <= distance < len(_CHUNKS):
        raise ValueError(f"distance must be 0, 1 or 2, not {distance}")
    found = [np.empty((0, 2), np.int64)]
    for start, width in _CHUNKS:
        mask = np.uint64((1 << width) - 1)
        part = (hashes >> np.uint64(start)) & mask
        order = np.argsort(part, kind="stable")
        part, sorted_hashes = part[order], hashes[order]
        left = np.arange(len(order) - 1) if len(order) else np.empty(0, np.int64)
        step = 1
        while len(left):
            # Those whose neighbour `step` places on still has the same part.
            left = left[left + step < len(order)]
            left = left[part[left] == part[left + step]]
            close = np.bitwise_count(sorted_hashes[left] ^ sorted_hashes[left + step]) <= distance
            pairs = np.stack([order[left[close]], order[left[close] + step]], axis=1)
            found.append(np.sort(pairs, axis=1))
            step += 1
    return np.unique(np.concatenate(found), axis=0)


def find_duplicates(
    manifest: Manifest,
    *,
    store: PixelStore | None = None,
    distance: int = 2,
    workers: int | None = None,
    ledger: Ledger | None = None,
) -> DuplicateReport:
    """Look for the same picture or the same text in different groups.

    Pictures are the same when their 64-bit difference hashes differ in at most `distance` bits and
    at most 5 % of the values of their 36 x 32 miniatures by more than 32 levels. Texts are the
    same when they agree without regard to case, punctuation, accents' encoding and white space.

    Args:
        manifest: what to examine; splits are taken from it.
        store: pixels that hold its items already; None decodes them (once, then cached). Videos
            are compared by their middle frame.
        distance: 0, 1 or 2.
        workers: processes for decoding, as in `open_pixels`.
        ledger: receives pictures that cannot be read.
    """
    items = manifest.items
    if store is None:
        store = _miniatures(manifest, workers, ledger)
    at = store.positions(items)
    usable = np.flatnonzero(store.readable[at])
    small = np.zeros((len(usable), *THUMBNAIL), np.uint8)
    for row, item in enumerate(usable):
        pixels = store[int(at[item])]
        if pixels.shape != THUMBNAIL:
            pixels = thumbnail(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))
        small[row] = pixels
    pairs = _confirmed(near_pairs(difference_hash(small), distance), small)
    groups = manifest.item_groups[usable]
    pairs = usable[pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]]]
    splits = _item_splits(manifest)
    pictures = [
        Cluster(tuple(items[i] for i in members), tuple(sorted({splits[i] for i in members})))
        for members in _components(pairs)
    ]
    return DuplicateReport(
        len(usable), len(manifest), distance, tuple(pictures), tuple(_captions(manifest))
    )


def _miniatures(manifest: Manifest, workers: int | None, ledger: Ledger | None) -> PixelStore:
    key = "thumbnail-36x32"
    if "video" not in manifest.table.column("kind").to_pylist():
        return open_pixels(manifest.items, thumbnail, key=key, workers=workers, ledger=ledger)
    clips = open_frames(
        manifest.items,
        thumbnail,
        key=key,
        frames=1,
        sampling="segments",
        workers=workers,
        ledger=ledger,
        spans=manifest_spans(manifest),
    )
    return Posters(clips)


def normalised(text: str) -> str:
    """A text without the differences that do not count: case, punctuation, spaces, encoding."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", folded).split()) or folded.strip()


def _confirmed(pairs: np.ndarray, small: np.ndarray) -> np.ndarray:
    # dHash is blind to colour and to small details: without this a red and a blue disc, or two
    # icons on the same background, would be the same picture.
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs), 4096):
        part = pairs[start : start + 4096]
        apart = np.abs(small[part[:, 0]].astype(np.int16) - small[part[:, 1]]) > _LEVELS
        kept.append(part[apart.mean(axis=(1, 2, 3)) <= _SHARE])
    return np.concatenate(kept)


def _item_splits(manifest: Manifest) -> list[str]:
    splits = [""] * len(manifest.items)
    names = manifest.table.column("split").to_pylist()
    for index, split in zip(manifest.item_index, names, strict=True):
        splits[index] = split
    return splits


def _components(pairs: np.ndarray) -> list[list[int]]:
    """Connected sets of numbers, each sorted, in order of their first member."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for left, right in pairs.tolist():
        a, b = root(left), root(right)
        parent[max(a, b)] = min(a, b)
    sets: dict[int, list[int]] = {}
    for node in sorted(parent):
        sets.setdefault(root(node), []).append(node)
    return list(sets.values())


def _captions(manifest: Manifest) -> list[Cluster]:
    columns: Sequence[list[str]] = [
        manifest.table.column(name).to_pylist() for name in ("text", "item", "group", "split")
    ]
    uses: dict[str, list[tuple[str, str, str, str]]] = {}
    for row in zip(*columns, strict=True):
        uses.setdefault(normalised(row[0]), []).append(row)
    return [
        Cluster(
            tuple(dict.fromkeys(row[1] for row in rows)),
            tuple(sorted({row[3] for row in rows})),
            rows[0][0],
        )
        for rows in uses.values()
        if len({row[2] for row in rows}) > 1
    ]
