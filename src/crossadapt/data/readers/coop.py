"""Classification sets as CoOp ships their splits: ``split_zhou_*.json``, and FGVC-Aircraft."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from crossadapt.data.class_sets import (
    CLASS_INDEX,
    CLASS_SET,
    LABEL,
    ClassSet,
    class_set,
    class_sets,
    spoken,
)
from crossadapt.data.readers.registry import Request, register
from crossadapt.errors import UserError

SPLITS = ("train", "val", "test")
_ANY = "split_zhou_*.json"
_VARIANTS = "variants.txt"


def add_labelled(
    request: Request,
    item: str | Path,
    group: str,
    split: str,
    label: str,
    index: int,
    known: ClassSet,
) -> None:
    """Add a picture of a class: its text is the class name, and it is a group of its own."""
    request.add(
        item,
        [label],
        group=group,
        split=split,
        attributes={LABEL: label, CLASS_INDEX: index, CLASS_SET: known.name},
    )


def _find(source: str) -> Path | None:
    path = Path(source)
    if path.is_dir():
        return next(iter(sorted(path.glob(_ANY))), None)
    return path if path.match(_ANY) and path.is_file() else None


@register("coop", lambda source: _find(source) is not None, order=2)
def read(request: Request) -> None:
    """CoOp's ``split_zhou_*.json``: train, val and test of a classification set."""
    path = _find(request.source)
    if path is None:
        raise UserError(
            f"no {_ANY} found", where=request.source, fix="name the file, or the folder it lies in"
        )
    rows = _rows(path)
    known = next((s for s in class_sets().values() if s.split == path.name), ClassSet())
    folder = path.absolute().parent
    root = request.root or _root(folder, known, [name for _, name, _, _ in rows])
    counts: Counter[str] = Counter()
    for split, name, index, label in rows:
        if label in known.ignore:
            request.ledger.add(root / name, f"no class of this set: {label}")
            continue
        before = len(request.rows)
        label = spoken(known.rename.get(label, label))
        add_labelled(request, root / name, name, split, label, index, known)
        counts[split] += len(request.rows) - before
    if not counts.total():
        raise UserError(
            "none of the pictures named in the split file exists",
            where=f"looked in {root}, for example for {rows[0][1] if rows else '?'}",
            fix="say where the pictures are with root=",
        )
    listed = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    request.notes.append(f"CoOp's split of {known.name or path.stem}: {listed}")


def _rows(path: Path) -> list[tuple[str, str, int, str]]:
    """(split, picture, number of the class, its name) of every entry of a split file."""
    fix = "expected {'train': [[picture, number, class], ...], 'val': [...], 'test': [...]}"
    try:
        content: Any = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(path), fix=fix) from error
    if not isinstance(content, dict) or any(split not in content for split in SPLITS):
        raise UserError(
            "the split file has not the keys train, val and test", where=str(path), fix=fix
        )
    rows = []
    named: dict[int, str] = {}
    for split in SPLITS:
        for number, entry in enumerate(content[split]):
            where = f"{path}: {split}[{number}]"
            try:
                name, index, label = entry
                rows.append((split, str(name), int(index), str(label)))
            except (TypeError, ValueError) as error:
                raise UserError(f"broken entry {entry!r}"[:200], where=where, fix=fix) from error
            if named.setdefault(int(index), str(label)) != label:
                raise UserError(
                    f"class {index} is both {named[int(index)]!r} and {label!r}",
                    where=where,
                    fix="download the split file again",
                )
    return rows


def _root(folder: Path, known: ClassSet, names: list[str]) -> Path:
    for part in (*known.pictures, "images", ""):
        if any((folder / part / name).is_file() for name in names[:50]):
            return folder / part
    return folder / (known.pictures[0] if known.pictures else "")


def _is_aircraft(source: str) -> bool:
    return (Path(source) / _VARIANTS).is_file()


@register("fgvc-aircraft", _is_aircraft, order=2)
def read_aircraft(request: Request) -> None:
    """FGVC-Aircraft as its authors ship it: ``variants.txt``, ``images_variant_*.txt``."""
    folder = Path(request.source).absolute()
    if not _is_aircraft(request.source):
        raise UserError(
            f"the folder has no {_VARIANTS}", where=str(folder), fix="name FGVC-Aircraft's folder"
        )
    known = class_set("fgvc_aircraft")
    variants = (folder / _VARIANTS).read_text("utf-8").splitlines()
    numbers = {name.strip(): index for index, name in enumerate(variants) if name.strip()}
    root = request.root or folder / "images"
    for split in SPLITS:
        path = folder / f"images_variant_{split}.txt"
        if not path.is_file():
            raise UserError(f"{path.name} is missing", where=str(folder), fix="unpack it again")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            picture, _, label = line.strip().partition(" ")
            if not picture:
                continue
            if label not in numbers:
                raise UserError(
                    f"{label!r} is no variant",
                    where=f"{path}:{number}",
                    fix=f"check it against {_VARIANTS}",
                )
            name = f"{picture}.jpg"
            add_labelled(request, root / name, name, split, label, numbers[label], known)
