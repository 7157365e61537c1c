"""Classes of a manifest: their names and order, the pictures of each, and draws of a few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossadapt.data.class_sets import CLASS_INDEX, CLASS_SET, LABEL, ClassSet, class_set
from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Labelled:
    """The classes of some data.

    `names` are those of the N classes in the data set's own order. `labels` maps each item of the
    manifest to the number of its class; `known` is what is published about the set.
    """

    names: tuple[str, ...]
    labels: dict[str, int]
    known: ClassSet

    def of(self, items: Sequence[str]) -> np.ndarray:
        """Numbers of the classes of items, int64 (items,)."""
        return np.asarray([self.labels[item] for item in items], np.int64)


def read_classes(manifest: Manifest, column: str = LABEL) -> Labelled:
    """The classes that a column of a manifest names.

    Classes are numbered as the attribute ``class_index`` says, else in the order of their names.

    Raises:
        UserError: no such column, an item without a class or with two, or fewer than two classes.
    """
    if column not in manifest.attributes:
        raise UserError(
            f"the data has no column {column!r} that names classes",
            where=manifest.source,
            fix=did_you_mean(column, manifest.attributes)
            if manifest.attributes
            else "sort the pictures into one folder per class (reader class-folder), or name the "
            "column with --label",
        )
    labels = manifest.table.column(column).to_pylist()
    numbered = column == LABEL and CLASS_INDEX in manifest.attributes
    order = manifest.table.column(CLASS_INDEX).to_pylist() if numbered else labels
    by_item: dict[str, str] = {}
    place: dict[str, int | str] = {}
    for item, label, at in zip(
        manifest.table.column("item").to_pylist(), labels, order, strict=True
    ):
        if label is None or not str(label).strip():
            raise UserError(
                "an item has no class", where=item, fix=f"fill in its {column}, or leave it out"
            )
        if by_item.setdefault(item, str(label)) != str(label):
            raise UserError(
                f"an item has two classes: {by_item[item]!r} and {str(label)!r}",
                where=item,
                fix="give every picture one class",
            )
        place.setdefault(str(label), at if numbered else str(label))
    names = tuple(sorted(place, key=lambda name: place[name]))
    if len(names) < 2:
        raise UserError(
            f"the data has {len(names)} class: nothing to tell apart",
            where=manifest.source,
            fix="add pictures of other classes",
        )
    numbers = {name: number for number, name in enumerate(names)}
    sets = set()
    if CLASS_SET in manifest.attributes:
        sets = set(manifest.table.column(CLASS_SET).to_pylist())
    known = class_set(sets.pop() or "") if len(sets) == 1 else ClassSet()
    return Labelled(names, {item: numbers[label] for item, label in by_item.items()}, known)


def base_and_novel(count: int) -> tuple[range, range]:
    """The first half of the classes, rounded up, and the rest: CoOp's base and new classes."""
    middle = math.ceil(count / 2)
    return range(middle), range(middle, count)


def draw(labels: np.ndarray, classes: Sequence[int], shots: int, seed: int) -> np.ndarray:
    """`shots` examples of each class, class by class: int64 positions (classes x shots,).

    Without replacement where a class has enough, else with, as CoOp's and Tip-Adapter's samplers
    do. What is drawn of a class depends on the seed and the number of the class only, and with
    enough pictures fewer shots are the first of more.

    Args:
        labels: class of each picture.
        classes: those to draw from.
        shots: K.
        seed: of the draw.

    Raises:
        UserError: a class has no picture at all.
    """
    parts = []
    for number in classes:
        there = np.flatnonzero(labels == number)
        if not len(there):
            raise UserError(
                f"class number {number} has no picture to learn from",
                where="train split",
                fix="add one, or leave the class out",
            )
        rng = np.random.default_rng([seed, number])
        enough = len(there) >= shots
        chosen = (
            rng.permutation(len(there))[:shots] if enough else rng.integers(0, len(there), shots)
        )
        parts.append(there[chosen])
    return np.concatenate(parts)
