"""The caption file format of Karpathy's COCO and Flickr30k splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from crossadapt.data.readers.registry import Request, register
from crossadapt.errors import UserError

_KNOWN_NAMES = ("dataset_coco.json", "dataset_flickr30k.json", "dataset_flickr8k.json")
_PICTURE_FOLDERS = ("", "images", "flickr30k-images", "flickr30k_images", "Images")


def _find(source: str) -> Path | None:
    path = Path(source)
    if path.is_dir():
        return next((path / name for name in _KNOWN_NAMES if (path / name).is_file()), None)
    return path if path.suffix.lower() == ".json" and path.is_file() else None


def _matches(source: str) -> bool:
    path = _find(source)
    if path is None:
        return False
    with path.open("rb") as file:
        # The whole file may have 150 MB; an object that starts so is enough to tell it from a list.
        return file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{")


@register("karpathy", _matches, order=4)
def read(request: Request) -> None:
    """Karpathy JSON of COCO, Flickr30k or Flickr8k; ``restval`` counts as train."""
    path = _find(request.source)
    if path is None:
        raise UserError(
            "no Karpathy caption file found", where=request.source, fix="name the .json file"
        )
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(path), fix="download it again") from (
            error
        )
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise UserError(
            "this JSON has no list 'images' with 'filename' and 'sentences'",
            where=str(path),
            fix="expected Karpathy's dataset_coco.json or dataset_flickr30k.json; for other JSON "
            "use one object a line (.jsonl)",
        )
    root = request.root or _picture_root(path.absolute().parent, images)
    counts: Counter[str] = Counter()
    for number, image in enumerate(images):
        try:
            name = (Path(image.get("filepath") or "") / image["filename"]).as_posix()
            texts = [sentence["raw"] for sentence in image["sentences"]]
            split = image["split"]
        except (KeyError, TypeError, AttributeError) as error:
            request.ledger.add(f"{path}#{number}", f"broken entry: no {error}")
            continue
        before = len(request.rows)
        request.add(root / name, texts, group=name, split=split)
        if len(request.rows) > before:
            counts[split] += 1
    if not counts:
        raise UserError(
            "none of the pictures named in the caption file exists",
            where=f"looked in {root}, for example for {_name(images[0])}",
            fix="say where the pictures are with root=",
        )
    listed = ", ".join(f"{split} {count}" for split, count in sorted(counts.items()))
    request.notes.append(f"Karpathy splits, pictures: {listed} (restval is used as train)")


def _name(image: Any) -> str:
    if not isinstance(image, dict):
        return "?"
    return (Path(str(image.get("filepath") or "")) / str(image.get("filename"))).as_posix()


def _picture_root(folder: Path, images: list[Any]) -> Path:
    """The folder beside the caption file that holds the first pictures, else the file's own."""
    for name in _PICTURE_FOLDERS:
        if any((folder / name / _name(image)).is_file() for image in images[:50]):
            return folder / name
    return folder
