"""Decoded and resized pictures as uint8 arrays: decoded once, kept in a memory-mapped cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from crossadapt.data import pool
from crossadapt.data.building import Building, decode_all
from crossadapt.data.decoding import MAX_PIXELS
from crossadapt.data.files import cache_dir
from crossadapt.data.ledger import Ledger
from crossadapt.data.manifest import is_builtin
from crossadapt.data.stores import CachedPixels, LivePixels, PixelStore
from crossadapt.data.worker import Transform
from crossadapt.errors import UserError
from crossadapt.files import make_folder

_FORMAT = 1
_FREE_SHARE = 0.8


def open_pixels(
    items: Sequence[str],
    transform: Transform,
    *,
    key: str,
    cache: Path | str | Literal[False] | None = None,
    workers: int | None = None,
    ledger: Ledger | None = None,
    progress: Callable[[int, int], None] | None = None,
    timeout: float = 60.0,
    limit_bytes: int | None = None,
    max_pixels: int = MAX_PIXELS,
    refresh: bool = False,
) -> PixelStore:
    """Decode all items once, in parallel, and return their pixels.

    The cache file is named by `key` and by path, size and modification time of every item in
    order; a second call with the same decodes nothing. It appears under its name only when it
    is complete. Unreadable items go to the ledger and leave the others untouched.

    Args:
        items: paths and built-in names, each once.
        transform: picklable; RGB picture to uint8 (3, H, W), e.g. ``backbone.preprocess.pixels``.
        key: what the transform does, e.g. a hash of its settings.
        cache: folder of the cache; None for ``pixels`` in `cache_dir`; False for none.
        workers: processes; 0 decodes here; None takes min(8, processors), or none below 256 items.
        ledger: receives unreadable items (stage ``decode``).
        progress: called with (done, total).
        timeout: seconds for one picture in a worker; then it is given up.
        limit_bytes: largest cache file; None for 80 % of the free disk. Beyond it the result is a
            `LivePixels` whose `reason` says so.
        max_pixels: pictures with more pixels are not decoded.
        refresh: decode again although a cache exists.

    Raises:
        UserError: no item is readable; the message counts the reasons.
        TypeError: the transform does not return uint8 (3, H, W).
    """
    items = list(items)
    ledger = ledger if ledger is not None else Ledger()
    shape = _probe(transform)
    size = len(items) * int(np.prod(shape))
    reason = "no cache was wanted"
    if cache is not False:
        base = make_folder(Path(cache) if cache is not None else cache_dir() / "pixels")
        folder = base / _name(items, key, max_pixels)
        if refresh:
            shutil.rmtree(folder, ignore_errors=True)
        store = _open(folder, items, shape)
        if store is not None:
            return _noted(store, ledger)
        free = int(shutil.disk_usage(base).free * _FREE_SHARE)
        limit = free if limit_bytes is None else min(limit_bytes, free)
        if size <= limit:
            with Building(folder, (len(items), *shape)) as target:
                job = pool.Job(transform, shape, target / "pixels.npy", max_pixels, timeout)
                failed = decode_all(job, items, workers, progress)
                _check_any(items, failed, ledger)
                state = {"format": _FORMAT, "unreadable": failed}
                (target / "state.json").write_text(json.dumps(state))
            store = _open(folder, items, shape)
            if store is None:
                raise UserError("the cache vanished while it was made", where=str(folder))
            return _noted(store, ledger)
        reason = f"the cache would take {size / 1e9:.1f} GB of at most {limit / 1e9:.1f} GB"
    failed = decode_all(
        pool.Job(transform, shape, None, max_pixels, timeout), items, workers, progress
    )
    _check_any(items, failed, ledger)
    return _noted(LivePixels(items, shape, failed, transform, max_pixels, reason), ledger)


def _probe(transform: Transform) -> tuple[int, ...]:
    array = np.asarray(transform(Image.new("RGB", (64, 48), "white")))
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] != 3:
        raise TypeError(f"transform must return uint8 (3, H, W), not {array.dtype} {array.shape}")
    return array.shape


def _name(items: Sequence[str], key: str, max_pixels: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT}\0{key}\0{max_pixels}".encode())
    for item in items:
        identity = item
        if not is_builtin(item):
            # A missing file is decoded to a ledger line; when it appears, the name changes.
            with suppress(OSError):
                found = os.stat(item)
                identity = f"{os.path.abspath(item)}\0{found.st_size}\0{found.st_mtime_ns}"
        digest.update(f"\0\0{identity}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _open(folder: Path, items: Sequence[str], shape: tuple[int, ...]) -> CachedPixels | None:
    """The finished cache, or None; a damaged one is removed so that it is made again."""
    if not folder.is_dir():
        return None
    try:
        state = json.loads((folder / "state.json").read_text())
        failed = {int(index): str(reason) for index, reason in state["unreadable"].items()}
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        if pixels.shape == (len(items), *shape) and pixels.dtype == np.uint8:
            return CachedPixels(items, pixels, failed, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Damaged from outside; nothing of value is in it, and it is made again.
        shutil.rmtree(folder, ignore_errors=True)
        return None
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _check_any(items: Sequence[str], failed: Mapping[int, str], ledger: Ledger) -> None:
    if len(failed) < len(items):
        return
    counts = Ledger()
    for index, reason in failed.items():
        ledger.add(items[index], reason, "decode")
        counts.add(items[index], reason, "decode")
    raise UserError(
        f"none of the {len(items)} pictures can be read",
        where=items[0] if items else "no items were given",
        fix=counts.render() or "name some items",
    )


def _noted(store: PixelStore, ledger: Ledger) -> PixelStore:
    for item, reason in store.unreadable.items():
        ledger.add(item, reason, "decode")
    return store
