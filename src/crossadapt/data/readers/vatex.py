"""VATEX: the authors' JSON files, and lists that divide their validation file."""

from __future__ import annotations

from pathlib import Path

from crossadapt.data.readers.registry import Request, register
from crossadapt.data.readers.video_sets import VideoSet, entries, holds, lines_of, load_json
from crossadapt.errors import UserError

_TRAIN = "vatex_training_v1.0.json"
_HELD_OUT = "vatex_validation_v1.0.json"
_LISTS = {"val": "val_list.txt", "test": "test_list.txt"}


@register("vatex", holds(_TRAIN, _HELD_OUT), order=4)
def read(request: Request) -> None:
    """VATEX (English): training and validation JSON, the latter divided by two list files."""
    videos = VideoSet.open("vatex", request)
    for video, texts in _captions(videos.folder / _TRAIN, request).items():
        videos.add(video, texts, "train")
    held_out = _captions(videos.folder / _HELD_OUT, request)
    there = {split: videos.folder / name for split, name in _LISTS.items()}
    if not there["test"].is_file():
        raise UserError(
            "no list says which validation videos are the test split",
            where=str(there["test"]),
            fix="write the video ids of the published 1,500 test videos into it, one a line, and "
            "the others into val_list.txt",
        )
    taken: set[str] = set()
    for split, path in there.items():
        for video in lines_of(path) if path.is_file() else []:
            if video in taken:
                request.ledger.add(video, "leak: in the lists of both val and test")
                continue
            taken.add(video)
            videos.add(video, held_out.get(video, []), split)
    videos.finish()


def _captions(path: Path, request: Request) -> dict[str, list[str]]:
    content = load_json(path, list)
    return dict(entries(content, ("videoID", "enCap"), path, request))
