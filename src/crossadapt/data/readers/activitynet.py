"""ActivityNet Captions for paragraph retrieval: id lists and the sentences of each video."""

from __future__ import annotations

import math

from crossadapt.data.readers.registry import Request, register
from crossadapt.data.readers.video_sets import VideoSet, holds, load_json

_PREFIX = "v_"
_FILES = {"train": ("train_ids.json", "train.json"), "test": ("val_ids.json", "val_1.json")}


@register("activitynet", holds("train_ids.json", "train.json", "val_ids.json"), order=4)
def read(request: Request) -> None:
    """ActivityNet: train_ids.json, train.json, val_ids.json, val_1.json (the test split)."""
    videos = VideoSet.open("activitynet", request)
    for split, (ids, captions) in _FILES.items():
        path = videos.folder / captions
        content = load_json(path, dict)
        for video in dict.fromkeys(load_json(videos.folder / ids, list)):
            entry = content.get(video)
            try:
                span = (0.0, float(max(1, math.ceil(float(entry["duration"])))))
                paragraph = " ".join(entry["sentences"])
            except (KeyError, TypeError, ValueError):
                request.ledger.add(
                    str(video), f"broken entry: no duration and sentences in {path.name}"
                )
                continue
            videos.add(video, [paragraph], split, span=span, stem=video.removeprefix(_PREFIX))
    videos.finish()
