"""The pictures of a few-shot run: examples, validation and test, of base and novel classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crossadapt.data import Ledger, Manifest, read_manifest
from crossadapt.data.readers.class_folder import has_class_folders
from crossadapt.errors import UserError
from crossadapt.tasks.classes import Labelled, base_and_novel, draw
from crossadapt.tasks.few_shot import FewShotConfig
from crossadapt.training.job import TrainJob
from crossadapt.training.splits import View, open_store, view_of

if TYPE_CHECKING:
    from crossadapt.backbones.hf import HFBackbone


@dataclass(frozen=True)
class Pictures:
    """Some labelled pictures.

    `labels` int64 (M,) number the classes of `names`; `groups` are M names.
    """

    items: tuple[str, ...]
    pixels: View
    labels: Tensor
    names: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class FewShotData:
    """What a run learns from and is measured on.

    `seen` are the classes of `pool`, `val` and `test`; `novel` holds the test pictures of the
    other classes under base-to-novel, else None. `pool` are all training pictures of the classes,
    `drawn` int64 the numbers of the examples among them, class by class. `repeated` counts classes
    that have fewer training pictures than shots, so that some were drawn twice.
    """

    classes: Labelled
    seen: tuple[str, ...]
    pool: Pictures
    drawn: np.ndarray
    val: Pictures | None
    test: Pictures
    novel: Pictures | None
    test_name: str
    repeated: int

    @property
    def support(self) -> Pictures:
        """The examples, class by class."""
        return _take(self.pool, self.drawn)


def read_few_shot(job: TrainJob, ledger: Ledger) -> Manifest:
    """The manifest of a job about classes; a folder of class folders is recognised as such."""
    reader = job.reader
    if reader == "auto" and has_class_folders(str(job.data)):
        reader = "class-folder"
    return read_manifest(
        job.data, reader=reader, columns=job.columns, split_seed=job.split_seed, ledger=ledger
    )


def open_few_shot(
    job: TrainJob,
    options: FewShotConfig,
    classes: Labelled,
    manifest: Manifest,
    backbone: HFBackbone,
    ledger: Ledger,
) -> FewShotData:
    """Draw the examples and decode what is needed; unreadable pictures go to the ledger.

    Raises:
        UserError: no training split or nothing to measure on, or a class without examples.
    """
    there = manifest.split_sizes
    if "train" not in there:
        raise UserError(
            "the data has no training split",
            where=f"splits: {', '.join(there)}",
            fix="measure an adapter on it with crossadapt evaluate, or name a split 'train'",
        )
    test_name = "test" if "test" in there else "val"
    if test_name not in there:
        raise UserError("the data has no held-out split", where=str(job.data), fix="add pictures")
    numbers = range(len(classes.names))
    base, novel = base_and_novel(len(numbers)) if job.protocol == "base-to-novel" else (numbers, ())
    cache, workers = job.cache, job.workers

    def pictures(split: str, which: Sequence[int], chosen: int | None = None) -> Pictures | None:
        if split not in there:
            return None
        part = manifest.select(split)
        item_labels = classes.of(part.items)
        if chosen is None:
            at = np.flatnonzero(np.isin(item_labels, list(which)))
        else:
            kept = np.unique(draw_some(item_labels, which, chosen, job.seed))
            at = kept
        return decode(part, [part.items[i] for i in at], classes, which, backbone, ledger,
                      cache=cache, workers=workers)  # fmt: skip

    # Unreadable pictures must not be drawn: decode the training split of the classes first.
    pool = pictures("train", base)
    if pool is None:
        raise UserError("no training picture can be read", where=str(job.data))
    drawn = draw(pool.labels.numpy(), range(len(base)), options.shots, job.seed)
    counts = np.bincount(pool.labels.numpy(), minlength=len(base))
    val = pictures("val", base, options.val_shots) if test_name != "val" else None
    test = pictures(test_name, base)
    other = pictures(test_name, novel) if len(novel) else None
    if test is None or (len(novel) and other is None):
        raise UserError(f"no picture of the split {test_name} can be read", where=str(job.data))
    return FewShotData(
        classes,
        pool.names,
        pool,
        drawn,
        val,
        test,
        other,
        test_name,
        int((counts < options.shots).sum()),
    )


def draw_some(labels: np.ndarray, which: Sequence[int], shots: int, seed: int) -> np.ndarray:
    """At most `shots` of each class that has any, for a smaller validation split."""
    there = [number for number in which if (labels == number).any()]
    return draw(labels, there, shots, seed)


def decode(
    part: Manifest,
    items: Sequence[str],
    classes: Labelled,
    which: Sequence[int],
    backbone: HFBackbone,
    ledger: Ledger,
    *,
    cache: Path | None,
    workers: int | None,
) -> Pictures | None:
    """The readable ones of some items as `Pictures` of the classes `which`; None without any."""
    wanted = set(items)
    rows = part.without([item for item in part.items if item not in wanted])
    if not len(rows):
        return None
    store = open_store(rows, backbone, ledger=ledger, cache=cache, workers=workers)
    if not hasattr(store, "positions") or "video" in rows.table.column("kind").to_pylist():
        raise UserError("few-shot takes pictures, the data hold videos", where=part.source)
    rows = rows.without(store.unreadable)
    if not len(rows):
        return None
    view = view_of(store, rows.items)
    if not isinstance(view, View):
        raise UserError("few-shot takes pictures", where=part.source)
    renumber = {number: at for at, number in enumerate(which)}
    labels = [renumber[int(number)] for number in classes.of(rows.items)]
    names = rows.group_names
    return Pictures(
        tuple(rows.items),
        view,
        torch.tensor(labels),
        tuple(classes.names[number] for number in which),
        tuple(names[group] for group in rows.item_groups),
    )


def _take(pictures: Pictures, at: np.ndarray) -> Pictures:
    view = pictures.pixels
    return Pictures(
        tuple(pictures.items[i] for i in at),
        View(view.store, view.places[at]),
        pictures.labels[torch.from_numpy(at)],
        pictures.names,
        tuple(pictures.groups[i] for i in at),
    )
