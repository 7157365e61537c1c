"""Readers turn what people have on disk into a `Manifest`; one file each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from crossadapt.data.ledger import Ledger
from crossadapt.data.manifest import CORE_COLUMNS, Manifest
from crossadapt.data.readers import (
    activitynet,
    builtin,
    class_folder,
    coop,
    didemo,
    huggingface,
    karpathy,
    lsmdc,
    msrvtt,
    msvd,
    sidecar,
    tables,
    vatex,
    written,
)
from crossadapt.data.readers.registry import Request, detect, get_reader, reader_names
from crossadapt.data.splits import DEFAULT_FRACTIONS, assign
from crossadapt.errors import UserError, did_you_mean

__all__ = ["read_manifest", "reader_names"]

# Importing a reader registers it.
READER_MODULES = (
    *(activitynet, didemo, lsmdc, msrvtt, msvd, vatex),
    *(builtin, class_folder, coop, huggingface, karpathy, sidecar, tables, written),
)


def read_manifest(
    source: str | Path,
    *,
    reader: str = "auto",
    columns: Mapping[str, str] | None = None,
    split_seed: int = 0,
    ledger: Ledger | None = None,
    root: str | Path | None = None,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
) -> Manifest:
    """Read a data set into a manifest with splits.

    Splits the data comes with are kept. Without any, groups are split by hash; with a train but
    no val split, a part of train becomes val. Either is said in the manifest's summary.

    Args:
        source: folder, file, ``hf:NAME_OR_FOLDER``, or the built-in name ``openmoji``.
        reader: name of a reader, or ``auto`` to recognise the layout.
        columns: which columns of the data are ours, e.g. ``{"item": "photo", "text": "title"}``.
        split_seed: seed of the hash split.
        ledger: receives what is left out, with reasons.
        root: folder that relative picture names start from.
        fractions: shares of the hash split.

    Raises:
        UserError: nothing there, unknown layout, wrong column, no usable or a single item.
    """
    shown = str(source)
    unknown = [name for name in columns or {} if name not in CORE_COLUMNS]
    if unknown:
        raise UserError(
            f"columns= has no entry {unknown[0]!r}",
            where="columns",
            fix=did_you_mean(unknown[0], CORE_COLUMNS),
        )
    if root is not None and not Path(root).is_dir():
        raise UserError("no such folder", where=f"root={root}", fix="name the pictures' folder")
    chosen = detect(shown) if reader == "auto" else get_reader(reader)
    request = Request(
        source=shown.removeprefix("hf:"),
        columns=dict(columns or {}),
        root=Path(root).absolute() if root is not None else None,
        ledger=ledger if ledger is not None else Ledger(),
    )
    chosen.read(request)
    return _with_splits(request.manifest(shown), split_seed, fractions)


def _with_splits(manifest: Manifest, seed: int, fractions: Mapping[str, float]) -> Manifest:
    names = manifest.table.column("split").to_pylist()
    if not any(names):
        shares = "/".join(f"{100 * value:g}" for value in fractions.values())
        note = f"split by hash of the group, seed {seed}, {'/'.join(fractions)} {shares} %"
        groups = manifest.table.column("group").to_pylist()
        return manifest.with_splits(assign(groups, seed=seed, fractions=fractions), note)
    if not all(names):
        count = names.count("")
        raise UserError(
            f"{count} of {len(names)} rows have no split",
            where=manifest.source,
            fix="give every row a split, or none to have them made",
        )
    train = np.flatnonzero(np.asarray(names, dtype=object) == "train")
    if len(train) == 0 or "val" in names:
        return manifest
    share = fractions.get("val", 0.0) or 0.1
    part = manifest.take(train)
    made = assign(
        part.table.column("group").to_pylist(),
        seed=seed,
        fractions={"train": 1 - share, "val": share},
    )
    for row, name in zip(train, made, strict=True):
        names[row] = name
    note = (
        f"the data has no val split: {100 * share:g} % of train by hash of the group, seed {seed}"
    )
    return manifest.with_splits(names, note)
