"""LSMDC (2016): tab-separated annotation files without a header."""

from __future__ import annotations

from crossadapt.data.readers.registry import Request, register
from crossadapt.data.readers.video_sets import VideoSet, holds, lines_of

_FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
_COLUMNS = 6  # clip, start and end aligned, start and end extracted, sentence


@register("lsmdc", holds(_FILES["train"], _FILES["test"]), order=4)
def read(request: Request) -> None:
    """LSMDC: the three LSMDC16 annotation files; a clip may have several sentences in train."""
    videos = VideoSet.open("lsmdc", request)
    for split, name in _FILES.items():
        path = videos.folder / name
        if split == "val" and not path.is_file():
            continue
        texts: dict[str, list[str]] = {}
        for number, line in enumerate(lines_of(path), 1):
            cells = line.split("\t")
            if len(cells) != _COLUMNS:
                request.ledger.add(
                    f"{path}:{number}", f"broken line: {len(cells)} cells instead of {_COLUMNS}"
                )
                continue
            texts.setdefault(cells[0], []).append(cells[-1])
        for clip, sentences in texts.items():
            videos.add(clip, sentences, split)
    videos.finish()
