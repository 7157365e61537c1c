"""MSR-VTT as its splits are distributed with CLIP4Clip: one JSON file and CSV lists."""

from __future__ import annotations

import csv
from pathlib import Path

from crossadapt.data.readers.registry import Request, register
from crossadapt.data.readers.video_sets import VideoSet, entries, holds, load_json
from crossadapt.errors import UserError

_DATA = "MSRVTT_data.json"
_TEST = "MSRVTT_JSFUSION_test.csv"
_SPLITS = {"train": "train", "validate": "val", "val": "val", "test": "test"}


@register("msrvtt", holds(_DATA, "MSRVTT_train.9k.csv", _TEST), order=4)
def read(request: Request) -> None:
    """MSR-VTT 1k-A trained on 9k: MSRVTT_data.json, MSRVTT_train.9k.csv, the JSFusion test list."""
    _one_k_a("msrvtt", "MSRVTT_train.9k.csv", request)


@register("msrvtt-7k", holds(_DATA, "MSRVTT_train.7k.csv", _TEST), order=4)
def read_7k(request: Request) -> None:
    """MSR-VTT 1k-A trained on 7k: MSRVTT_data.json, MSRVTT_train.7k.csv, the JSFusion test list."""
    _one_k_a("msrvtt-7k", "MSRVTT_train.7k.csv", request)


@register("msrvtt-full", holds(_DATA), order=4)
def read_full(request: Request) -> None:
    """MSR-VTT full: MSRVTT_data.json alone, with the split each of its videos names."""
    videos = VideoSet.open("msrvtt-full", request)
    path = videos.folder / _DATA
    content = load_json(path, dict)
    texts = _sentences(content, path, request)
    for video, split in entries(content.get("videos", []), ("video_id", "split"), path, request):
        if split not in _SPLITS:
            request.ledger.add(video, f"broken entry: unknown split {split!r}")
            continue
        videos.add(video, texts.get(video, []), _SPLITS[split])
    videos.finish()


def _one_k_a(name: str, train: str, request: Request) -> None:
    videos = VideoSet.open(name, request)
    path = videos.folder / _DATA
    texts = _sentences(load_json(path, dict), path, request)
    tested = _rows(videos.folder / _TEST, ("video_id", "sentence"))
    held_out = {video for video, _ in tested}
    for (video,) in _rows(videos.folder / train, ("video_id",)):
        if video in held_out:
            request.ledger.add(video, "leak: a training video that is in the test list")
            continue
        videos.add(video, texts.get(video, []), "train")
    for video, sentence in tested:
        videos.add(video, [sentence], "test")
    videos.finish()


def _sentences(content: dict, path: Path, request: Request) -> dict[str, list[str]]:
    """Captions of each video in file order."""
    found: dict[str, list[str]] = {}
    listed = content.get("sentences", [])
    for video, caption in entries(listed, ("video_id", "caption"), path, request):
        found.setdefault(video, []).append(caption)
    if not found:
        raise UserError(
            "this JSON has no list 'sentences' with 'video_id' and 'caption'",
            where=str(path),
            fix="use MSRVTT_data.json as distributed with CLIP4Clip",
        )
    return found


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The named columns of a CSV list.

    Raises:
        UserError: the file is not there or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or [])]
            if missing:
                raise UserError(
                    f"there is no column {missing[0]!r}",
                    where=f"{path}, columns: {', '.join(reader.fieldnames or [])}",
                    fix="use the authors' file as it is",
                )
            return [tuple(str(row[name]) for name in columns) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from error
