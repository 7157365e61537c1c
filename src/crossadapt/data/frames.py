"""Frames of videos as uint8 arrays: decoded once, kept in memory-mapped shards.

A shard is a folder with the frames of up to some hundred items. It is made under a temporary name
and appears when it is complete, so an interrupted pass loses one shard at most; items added later
become new shards, and those of before stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from crossadapt.data import pool
from crossadapt.data.building import Building, decode_all
from crossadapt.data.decoding import MAX_PIXELS, Unreadable
from crossadapt.data.files import cache_dir
from crossadapt.data.frame_choice import WHOLE, Sampling
from crossadapt.data.frame_store import CachedFrames, FrameStore, LiveFrames, Shard, record_bytes
from crossadapt.data.ledger import Ledger
from crossadapt.data.manifest import Manifest, is_builtin
from crossadapt.data.video import read_frames
from crossadapt.data.worker import Transform
from crossadapt.errors import UserError
from crossadapt.files import make_folder

_FORMAT = 1
_FREE_SHARE = 0.8
_WORTH_WORKERS = 32
SHARD_BYTES = 2**30
"""A shard is closed before it grows beyond this."""
Span = tuple[float, float]


@dataclass(frozen=True)
class FrameReader:
    """Opens an item and returns its record: F pictures, then their F times (see `frame_store`).

    Attributes:
        transform: RGB picture to uint8 (3, H, W).
        sampling: rule and F.
        shape: (3, H, W) that the transform returns.
        spans: item to (first, last) second, of items of which only a part counts.
    """

    transform: Transform
    sampling: Sampling
    shape: tuple[int, ...]
    spans: Mapping[str, Span] = field(default_factory=dict)

    def read_item(self, item: str, max_pixels: int) -> np.ndarray:
        """The record of one item: uint8 (record_bytes,).

        Raises:
            Unreadable: the item cannot be decoded or transformed.
        """
        count = self.sampling.frames
        pixels = np.zeros((count, *self.shape), np.uint8)
        times = np.full(count, np.nan)
        span = self.spans.get(item, self.sampling.span)
        choose = Sampling(self.sampling.rule, count, span)
        for place, (time, image) in enumerate(read_frames(item, choose, max_pixels=max_pixels)):
            try:
                pixels[place] = self.transform(image)
            except Exception as error:
                # As for pictures: an odd one must not end the run.
                what = f"{type(error).__name__}: {error}"
                raise Unreadable(f"preprocessing failed: {what}") from error
            times[place] = time
        return np.concatenate([pixels.reshape(-1), times.view(np.uint8)])

    def __call__(self, image: Image.Image) -> np.ndarray:
        """One picture, as the plain transform."""
        return np.asarray(self.transform(image))


def open_frames(
    items: Sequence[str],
    transform: Transform,
    *,
    key: str,
    frames: int,
    sampling: str = "1fps",
    cache: Path | str | Literal[False] | None = None,
    workers: int | None = None,
    ledger: Ledger | None = None,
    spans: Mapping[str, Span] | None = None,
    progress: Callable[[int, int], None] | None = None,
    timeout: float = 300.0,
    limit_bytes: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> FrameStore:
    """Decode F frames of every item once, in parallel, and return them: (F, 3, H, W) and a mask.

    A later call with the same settings decodes only items it has not seen (by path, size,
    modification time and span). Unreadable items go to the ledger and leave the others untouched.

    Args:
        items: paths of videos, animations and pictures, and built-in names, each once.
        transform: picklable; RGB picture to uint8 (3, H, W), e.g. ``backbone.preprocess.pixels``.
        key: what the transform does, e.g. a hash of its settings.
        frames: F; clips with fewer frames are padded with zeros and masked.
        sampling: one of `frame_choice.SAMPLINGS`.
        cache: folder of the cache; None for ``frames`` in `cache_dir`; False for none.
        workers: processes; 0 decodes here; None takes min(8, processors), or none for few items.
        ledger: receives unreadable items (stage ``decode``).
        spans: item to (first, last) second, both included, of items of which only a part counts.
        progress: called with (done, total) of the items that had to be decoded.
        timeout: seconds for one item in a worker; then it is given up.
        limit_bytes: largest growth of the cache; None for 80 % of the free disk. Beyond it the
            result is a `LiveFrames` whose `reason` says so.
        shard_bytes: see `SHARD_BYTES`.
        max_pixels: frames with more pixels are not decoded.

    Raises:
        UserError: an unknown sampling, no frames wanted, or no item is readable.
        TypeError: the transform does not return uint8 (3, H, W).
    """
    items = list(dict.fromkeys(items))
    ledger = ledger if ledger is not None else Ledger()
    wanted = {item: span for item, span in (spans or {}).items() if tuple(span) != WHOLE}
    for span in wanted.values():
        Sampling(sampling, frames, span)  # says what is wrong with a span before a long pass
    rule = Sampling(sampling, frames)
    reader = FrameReader(transform, rule, _probe(transform), wanted)
    size = record_bytes(frames, reader.shape)
    if cache is False:
        return _live(items, reader, max_pixels, "no cache was wanted", ledger)
    base = make_folder(Path(cache) if cache is not None else cache_dir() / "frames")
    folder = make_folder(base / _settings(key, rule, reader.shape, max_pixels))
    names = [_identity(item, wanted.get(item, WHOLE)) for item in items]
    shards = _shards(folder, size)
    new = [place for place, name in enumerate(names) if name not in shards]
    free = int(shutil.disk_usage(base).free * _FREE_SHARE)
    limit = free if limit_bytes is None else min(limit_bytes, free)
    if len(new) * size > limit:
        reason = f"the cache would grow by {len(new) * size / 1e9:.1f} GB, "
        reason += f"at most {limit / 1e9:.1f} GB are allowed"
        return _live(items, reader, max_pixels, reason, ledger)
    rows = max(1, shard_bytes // size)
    for start in range(0, len(new), rows):
        part = new[start : start + rows]
        report = _shifted(progress, start, len(new))
        made = [items[place] for place in part]
        part_names = [names[place] for place in part]
        _make_shard(folder, made, part_names, reader, max_pixels, timeout, workers, report)
    if new:
        shards = _shards(folder, size)
    store = CachedFrames(items, [shards[name] for name in names], frames, reader.shape)
    return _noted(store, ledger)


def span_of(item: str, start: object, end: object) -> Span | None:
    """The part of a clip that counts, in seconds; None when neither end is given.

    Raises:
        UserError: they are not numbers.
    """
    if start is None and end is None:
        return None
    try:
        return float(str(start or 0)), WHOLE[1] if end is None else float(str(end))
    except ValueError as error:
        raise UserError(
            f"start {start!r} and end {end!r} are not seconds", where=item, fix="give numbers"
        ) from error


def manifest_spans(manifest: Manifest) -> dict[str, Span]:
    """The spans of the items whose rows say so with the attributes ``start`` and ``end``, seconds.

    Raises:
        UserError: one of the two attributes is missing, or rows of an item disagree.
    """
    there = {"start", "end"} & set(manifest.attributes)
    if not there or "video" not in manifest.table.column("kind").to_pylist():
        return {}
    if len(there) == 1:
        raise UserError(
            f"the videos have {there.pop()!r} but not the other of 'start' and 'end'",
            where=manifest.source,
            fix="give both in seconds, or rename the column",
        )
    columns = (manifest.table.column(name).to_pylist() for name in ("item", "start", "end"))
    spans: dict[str, Span] = {}
    for item, start, end in zip(*columns, strict=True):
        span = span_of(item, start, end)
        if span is None:
            continue
        if spans.setdefault(item, span) != span:
            raise UserError(
                f"two parts of one file, {spans[item]} and {span}",
                where=item,
                fix="an item is one clip: cut the file, or name it twice through links",
            )
    return spans


def _make_shard(
    folder: Path,
    items: Sequence[str],
    names: Sequence[str],
    reader: FrameReader,
    max_pixels: int,
    timeout: float,
    workers: int | None,
    report: Callable[[int, int], None] | None,
) -> None:
    size = record_bytes(reader.sampling.frames, reader.shape)
    spans = {item: reader.spans[item] for item in items if item in reader.spans}
    part = FrameReader(reader.transform, reader.sampling, reader.shape, spans)
    name = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
    with Building(folder / f"shard-{name}", (len(items), size)) as target:
        job = pool.Job(part, (size,), target / "pixels.npy", max_pixels, timeout)
        failed = decode_all(job, items, workers, report, alone_below=_WORTH_WORKERS)
        state = {"format": _FORMAT, "items": list(names), "unreadable": failed}
        (target / "state.json").write_text(json.dumps(state))


def _probe(transform: Transform) -> tuple[int, ...]:
    array = np.asarray(transform(Image.new("RGB", (64, 48), "white")))
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] != 3:
        raise TypeError(f"transform must return uint8 (3, H, W), not {array.dtype} {array.shape}")
    return array.shape


def _settings(key: str, rule: Sampling, shape: tuple[int, ...], max_pixels: int) -> str:
    what = (_FORMAT, key, rule.rule, rule.frames, shape, max_pixels)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _identity(item: str, span: Span) -> str:
    identity = item
    if not is_builtin(item):
        # A missing file is decoded to a ledger line; when it appears, its identity changes.
        with suppress(OSError):
            found = os.stat(item)
            identity = f"{os.path.abspath(item)}\0{found.st_size}\0{found.st_mtime_ns}"
    named = f"{identity}\0{span[0]!r}\0{span[1]!r}"
    return hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _shards(folder: Path, size: int) -> dict[str, tuple[Shard, int]]:
    """Where each known item is: (shard, row); a damaged shard is removed and made again."""
    found: dict[str, tuple[Shard, int]] = {}
    for place in sorted(folder.glob("shard-????????????????")):
        try:
            state = json.loads((place / "state.json").read_text())
            records = np.load(place / "pixels.npy", mmap_mode="r")
            failed = {int(row): str(reason) for row, reason in state["unreadable"].items()}
            names = [str(name) for name in state["items"]]
            if records.shape != (len(names), size) or records.dtype != np.uint8:
                raise ValueError("another shape than the settings say")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            shutil.rmtree(place, ignore_errors=True)
            continue
        shard = Shard(place, records, failed)
        found.update((name, (shard, row)) for row, name in enumerate(names))
    return found


def _shifted(
    progress: Callable[[int, int], None] | None, start: int, total: int
) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, _: progress(start + done, total)


def _live(
    items: Sequence[str], reader: FrameReader, max_pixels: int, reason: str, ledger: Ledger
) -> FrameStore:
    failed: dict[int, str] = {}
    for place, item in enumerate(items):
        try:
            reader.read_item(item, max_pixels)
        except Unreadable as error:
            failed[place] = error.reason
    return _noted(LiveFrames(items, failed, reader, max_pixels, reason), ledger)


def _noted(store: FrameStore, ledger: Ledger) -> FrameStore:
    """Put the unreadable items into the ledger; an error when nothing is readable."""
    counts = Ledger()
    for item, reason in store.unreadable.items():
        ledger.add(item, reason, "decode")
        counts.add(item, reason, "decode")
    if len(store.unreadable) == len(store):
        raise UserError(
            f"none of the {len(store)} clips can be read",
            where=store.items[0] if store.items else "no items were given",
            fix=counts.render() or "name some items",
        )
    return store
