"""MSVD as distributed with CLIP4Clip: three id lists and a pickle of tokenised captions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from crossadapt.data.readers.registry import Request, register
from crossadapt.data.readers.video_sets import VideoSet, holds, lines_of
from crossadapt.errors import UserError

_CAPTIONS = "raw-captions.pkl"


@register("msvd", holds(_CAPTIONS, "train_list.txt", "test_list.txt"), order=4)
def read(request: Request) -> None:
    """MSVD: train_list.txt, val_list.txt, test_list.txt and raw-captions.pkl."""
    videos = VideoSet.open("msvd", request)
    path = videos.folder / _CAPTIONS
    captions = _load(path)
    for split in ("train", "val", "test"):
        listed = videos.folder / f"{split}_list.txt"
        for video in lines_of(listed) if split != "val" or listed.is_file() else []:
            words = captions.get(video, [])
            try:
                texts = [" ".join(caption) for caption in words]
            except TypeError:
                request.ledger.add(video, "broken entry: its captions are not lists of words")
                continue
            videos.add(video, texts, split)
    videos.finish()


class _Plain(pickle.Unpickler):
    """Reads dictionaries, lists, texts and numbers; a pickle that names any code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            # Written by Python 2: its texts are bytes without a declared encoding.
            content = _Plain(file, encoding="utf-8").load()
    except Exception as error:
        # A damaged pickle can raise nearly anything.
        raise UserError(
            f"the captions cannot be read: {error}", where=str(path), fix="download the file again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            "the file holds no dictionary of captions",
            where=str(path),
            fix="use the authors' file as it is",
        )
    return content
