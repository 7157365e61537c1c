"""Measure a backbone, frozen and with an adapter, on labelled pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossadapt import backbones
from crossadapt.adapters.attach import frozen
from crossadapt.adapters.classifier import class_companion
from crossadapt.adapters.folder import load_adapter
from crossadapt.adapters.reading import read_adapter_config
from crossadapt.adapters.registry import get_method
from crossadapt.backbones.precision import choose_precision
from crossadapt.data import Ledger
from crossadapt.errors import UserError
from crossadapt.evaluation.classification import (
    ClassificationResult,
    join,
    paired_accuracy,
)
from crossadapt.tasks.classes import base_and_novel, read_classes
from crossadapt.tasks.encode import encode_images
from crossadapt.training.few_shot import FEW_SHOT
from crossadapt.training.few_shot_data import Pictures, decode, read_few_shot
from crossadapt.training.few_shot_measure import measure_pictures
from crossadapt.training.job import TrainJob
from crossadapt.training.measure import DEFAULT_BACKBONE, _run_record

PROTOCOLS = ("few-shot", "base-to-novel")


@dataclass(frozen=True)
class ClassEvaluation:
    """The frozen model's accuracy, and the adapted one's if there is an adapter."""

    frozen: ClassificationResult
    adapted: ClassificationResult | None
    ledger: Ledger
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: results with intervals, and the paired test."""
        document: dict[str, Any] = {**self.facts, "notes": list(self.notes)}
        document["frozen"] = self.frozen.to_dict()
        if self.adapted is not None:
            document["adapted"] = self.adapted.to_dict()
            if self.frozen.groups > 1:
                document["paired"] = paired_accuracy(self.frozen, self.adapted).to_dict()
        document["left_out"] = self.ledger.summary()
        return document


def is_class_adapter(adapter: Path | None) -> bool:
    """Whether an adapter scores classes, or was trained on the task few-shot."""
    if adapter is None:
        return False
    method = read_adapter_config(adapter)["method"]
    task = _run_record(adapter).get("job", {}).get("task")
    return task == FEW_SHOT or get_method(method).few_shot


def evaluate_classes(
    data: str,
    *,
    adapter: Path | None = None,
    backbone: str | None = None,
    protocol: str = "few-shot",
    split: str = "test",
    reader: str = "auto",
    columns: Mapping[str, str] | None = None,
    split_seed: int | None = None,
    precision: str = "auto",
    workers: int | None = None,
    cache: Path | None = None,
    label: str | None = None,
) -> ClassEvaluation:
    """Top-1 accuracy on one split, also of other data than was trained on (domain shift).

    Classes are matched by name. Those the adapter's cache knows are scored by it, cut to the
    classes of the data (ImageNet-A and -R have 200 of 1,000); others by their text alone.

    Args:
        data: as for training, with classes.
        adapter: an adapter folder; None measures the frozen model.
        backbone: its source; the adapter's own when None, without one `pico-clip`.
        protocol: ``few-shot`` chooses among all classes of the data, ``base-to-novel`` among the
            first half and among the rest.
        split: rows to measure on; ``all`` for every row.
        reader: how to read the data.
        columns: which column is which.
        split_seed: seed of the hash split; the adapter's own when None.
        precision: number format of the encoders.
        workers: processes that decode.
        cache: folder of prepared pictures.
        label: column that names the class; the adapter's own when None.

    Raises:
        UserError: anything wrong with data, adapter, backbone or protocol; no class in common.
    """
    if protocol not in PROTOCOLS:
        raise UserError(
            f"classes are not measured by {protocol!r}",
            where="protocol",
            fix=f"use {' or '.join(PROTOCOLS)}",
        )
    saved = read_adapter_config(adapter) if adapter is not None else None
    record = _run_record(adapter)
    few, job = record.get("few_shot", {}), record.get("job", {})
    seed = int(job.get("split_seed", 0)) if split_seed is None else split_seed
    ledger = Ledger()
    reading = TrainJob(data=data, reader=reader, columns=columns, split_seed=seed)
    manifest = read_few_shot(reading, ledger)
    classes = read_classes(manifest, label or few.get("label") or "label")
    rows = manifest if split == "all" else manifest.select(split)
    source = backbone or (saved["backbone"]["source"] if saved else DEFAULT_BACKBONE)
    model = backbones.load(source)
    number_format = choose_precision(precision, "cpu")
    trained_on = record.get("data", {}).get("fingerprint")
    shifted = adapter is not None and trained_on != manifest.fingerprint
    # The templates that the adapter was built with belong to it, not those of the new data.
    templates = tuple(few.get("templates") or classes.known.templates)
    numbers = range(len(classes.names))
    parts = base_and_novel(len(numbers)) if protocol == "base-to-novel" else (numbers,)
    pictures = []
    for which in parts:
        found = decode(rows, _items(rows, classes, which), classes, which, model, ledger,
                       cache=cache, workers=workers)  # fmt: skip
        if found is None:
            raise UserError("no picture can be read", where=f"{data}, split {split}")
        pictures.append(found)
    if adapter is not None:
        load_adapter(model, adapter)
    notes = []
    judge = class_companion(model)
    if judge is not None:
        mine, theirs = (", ".join(names[:3]) for names in (judge.classes, classes.names))
        known = set(judge.classes) & set(classes.names)
        if not known:
            raise UserError(
                "the adapter knows none of the classes of the data",
                where=f"{theirs}, ...; it knows {mine}, ...",
                fix="name the classes alike, or train on this data",
            )
        if len(known) < len(classes.names):
            new = len(classes.names) - len(known)
            notes.append(f"{new} classes are new to the adapter: scored by their text alone.")
    name = "domain-shift" if shifted and protocol == "few-shot" else protocol

    def measure() -> ClassificationResult:
        def one(part: Pictures) -> ClassificationResult:
            images = encode_images(model, part.pixels, precision=number_format)
            return measure_pictures(model, part, images, templates, name, number_format)

        results = [one(part) for part in pictures]
        return results[0] if len(results) == 1 else join(*results)

    with frozen(model):
        before = measure()
    after = measure() if adapter is not None else None
    if adapter is not None and not shifted and split in ("train", "val", "all"):
        notes.append("The adapter was built or chosen on this split: the numbers are not held out.")
    facts = {
        "data": data,
        "split": split,
        "protocol": name,
        "backbone": source,
        "adapter": str(adapter) if adapter is not None else None,
        "templates": list(templates),
    }
    return ClassEvaluation(before, after, ledger, facts, tuple(notes))


def _items(rows: Any, classes: Any, which: Any) -> list[str]:
    wanted = set(which)
    return [i for i, number in zip(rows.items, classes.of(rows.items), strict=True)
            if int(number) in wanted]  # fmt: skip
