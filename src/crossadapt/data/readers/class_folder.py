"""Pictures sorted into one folder per class, and ImageNet with its variants."""

from __future__ import annotations

from pathlib import Path

from crossadapt.data.class_sets import ClassSet, class_set, spoken
from crossadapt.data.readers.coop import add_labelled
from crossadapt.data.readers.registry import IMAGE_SUFFIXES, Request, register
from crossadapt.data.readers.sidecar import walk
from crossadapt.data.splits import is_split_name
from crossadapt.errors import UserError

CLASS_NAMES = "classnames.txt"
IMAGENET_FOLDERS = {
    "images/train": "train",
    # What is called val there is the test set of every published table.
    "images/val": "test",
    "imagenetv2-matched-frequency-format-val": "test",
    "imagenet-a": "test",
    "imagenet-r": "test",
}
"""Folder of pictures to split, as CoOp lays ImageNet and its variants out."""
_SKETCH = "images"


def _folders(path: Path) -> list[Path]:
    found = [f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")]
    return sorted(found)


def _pictures(folder: Path) -> list[Path]:
    return [file for file in walk(folder) if file.suffix.lower() in IMAGE_SUFFIXES]


def _parts(path: Path) -> dict[str, Path]:
    """Split to the folder that holds its class folders; the split is empty when there is none."""
    folders = _folders(path)
    if folders and all(is_split_name(folder.name) for folder in folders):
        return {folder.name: folder for folder in folders}
    return {"": path}


def has_class_folders(source: str) -> bool:
    """Whether a folder holds pictures in one folder per class and nothing else.

    Not asked in auto-detection: folders may as well be years or albums. The task few-shot asks.
    """
    path = Path(source)
    if not path.is_dir() or (path / CLASS_NAMES).is_file():
        return False
    if any(file.suffix.lower() not in IMAGE_SUFFIXES for file in walk(path)):
        # Captions, tables or anything else: other readers know what they mean.
        return False
    loose = [f for f in path.iterdir() if f.is_file() and f.suffix.lower() in IMAGE_SUFFIXES]
    return not loose and all(len(_folders(part)) > 1 for part in _parts(path).values())


@register("class-folder", lambda source: False, order=8)
def read(request: Request) -> None:
    """One folder per class, as ``CLASS/1.jpg`` or ``train/CLASS/1.jpg``; its name is the text."""
    path = Path(request.source).absolute()
    if not path.is_dir():
        raise UserError("not a folder", where=request.source, fix="name the folder of the classes")
    parts = _parts(path)
    names = sorted({folder.name for part in parts.values() for folder in _folders(part)})
    if len(names) < 2:
        raise UserError(
            f"the folder holds {len(names)} class folders",
            where=str(path),
            fix="make a folder for each class, named like the class",
        )
    for split, part in parts.items():
        for folder in _folders(part):
            for file in _pictures(folder):
                group = file.relative_to(path).as_posix()
                label, index = spoken(folder.name), names.index(folder.name)
                add_labelled(request, file, group, split, label, index, ClassSet())
    request.notes.append(f"{len(names)} classes by the names of the folders")


def _imagenet_parts(path: Path) -> dict[str, Path]:
    """Splits to folders of pictures of ImageNet or one of its variants."""
    found = {
        split: path / name for name, split in IMAGENET_FOLDERS.items() if (path / name).is_dir()
    }
    if not found and (path / _SKETCH).is_dir():
        found = {"test": path / _SKETCH}
    return found


def _is_imagenet(source: str) -> bool:
    path = Path(source)
    return (path / CLASS_NAMES).is_file() and bool(_imagenet_parts(path))


@register("imagenet", _is_imagenet, order=2)
def read_imagenet(request: Request) -> None:
    """ImageNet, -V2, -Sketch, -A or -R in CoOp's layout, with its ``classnames.txt``."""
    path = Path(request.source).absolute()
    if not _is_imagenet(request.source):
        raise UserError(
            f"the folder has no {CLASS_NAMES}, or no folder of pictures that is known",
            where=str(path),
            fix=f"expected one of {', '.join([*IMAGENET_FOLDERS, _SKETCH])}",
        )
    listed: dict[str, str] = {}
    for line in (path / CLASS_NAMES).read_text("utf-8").splitlines():
        folder, _, label = line.strip().partition(" ")
        if folder:
            listed[folder] = label.strip()
    numbers = {folder: index for index, folder in enumerate(sorted(listed))}
    # ImageNet-V2 names its folders by the place of the class in the list.
    by_place = {str(place): folder for place, folder in enumerate(listed)}
    known = class_set("imagenet")
    doubles = {name for name in listed.values() if list(listed.values()).count(name) > 1}
    for split, part in _imagenet_parts(path).items():
        for folder in _folders(part):
            key = by_place.get(folder.name, folder.name)
            if key not in listed:
                request.ledger.add(folder, f"unknown class: not in {CLASS_NAMES}")
                continue
            label = listed[key]
            # Two classes of one name (ImageNet has such pairs) must not become one.
            label = f"{label} ({key})" if label in doubles else label
            for file in _pictures(folder):
                group = file.relative_to(path).as_posix()
                add_labelled(request, file, group, split, label, numbers[key], known)
    request.notes.append("ImageNet's val pictures are the test split, as in all published tables")
