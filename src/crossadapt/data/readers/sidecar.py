"""A folder of pictures, each with a text file of the same name beside it."""

from __future__ import annotations

import os
from pathlib import Path

from crossadapt.data.readers.registry import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Request,
    register,
)
from crossadapt.data.splits import is_split_name
from crossadapt.errors import UserError


def walk(folder: Path) -> list[Path]:
    """All files below a folder in a stable order; hidden files and folders are skipped."""
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.extend(Path(where, name) for name in sorted(names) if not name.startswith("."))
    return found


def folder_split(relative: Path) -> str:
    """The split named by the first folder of a path such as ``train/red/1.jpg``, or empty."""
    first = relative.parts[0] if len(relative.parts) > 1 else ""
    return first if first and is_split_name(first) else ""


def _matches(source: str) -> bool:
    path = Path(source)
    return path.is_dir() and any(file.suffix.lower() == ".txt" for file in walk(path))


@register("sidecar", _matches, order=6)
def read(request: Request) -> None:
    """Pictures with a side-car ``.txt`` each: every line is a caption; folders may nest."""
    folder = Path(request.source).absolute()
    if not folder.is_dir():
        raise UserError("not a folder", where=request.source, fix="name the pictures' folder")
    if request.columns:
        raise UserError(
            "a folder with side-car texts has no columns",
            where="columns",
            fix="leave columns= out, or write a metadata.csv",
        )
    captions: dict[Path, Path] = {}
    media: dict[Path, list[Path]] = {}
    for file in walk(folder):
        stem = file.with_suffix("")
        if file.suffix.lower() == ".txt":
            captions[stem] = file
        else:
            media.setdefault(stem, []).append(file)
    splits = {folder_split(stem.relative_to(folder)) for stem in media if stem in captions}
    for stem, files in media.items():
        known = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
        # A caption of the same name says that a file of unknown type is meant as a picture.
        meant = known or (files if stem in captions else [])
        if stem not in captions:
            for file in meant:
                request.ledger.add(file, f"image without caption: no {stem.name}.txt beside it")
            continue
        texts = _lines(captions.pop(stem), request)
        relative = stem.relative_to(folder)
        for file in meant if texts is not None else []:
            # Pictures that share one text file show the same thing: they are one group.
            split = folder_split(relative) if "" not in splits else ""
            request.add(file, texts or [], group=relative.as_posix(), split=split)
    for file in captions.values():
        request.ledger.add(file, "caption without image: no picture of that name beside it")
    if "" not in splits and splits:
        request.notes.append("splits by the top folders " + ", ".join(sorted(splits)))


def _lines(file: Path, request: Request) -> list[str] | None:
    try:
        return file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        request.ledger.add(file, "unreadable text: not UTF-8, convert the file")
    except OSError as error:
        request.ledger.add(file, f"unreadable text: {error.strerror}")
    return None
