"""DiDeMo for paragraph retrieval: file lists, and moments whose descriptions are joined."""

from __future__ import annotations

from crossadapt.data.readers.registry import Request, register
from crossadapt.data.readers.video_sets import VideoSet, entries, holds, lines_of, load_json

_SPAN = (0.0, 31.0)
"""Annotators saw the first thirty seconds; the released loaders read seconds 0 to 31."""


@register("didemo", holds("train_data.json", "train_list.txt", "test_list.txt"), order=4)
def read(request: Request) -> None:
    """DiDeMo: {train,val,test}_list.txt and {train,val,test}_data.json, one paragraph a video."""
    videos = VideoSet.open("didemo", request)
    for split in ("train", "val", "test"):
        path = videos.folder / f"{split}_data.json"
        listed = videos.folder / f"{split}_list.txt"
        if split == "val" and not listed.is_file():
            continue
        texts: dict[str, list[str]] = {}
        content = load_json(path, list)
        for video, text in entries(content, ("video", "description"), path, request):
            texts.setdefault(video, []).append(text)
        for video in lines_of(listed):
            paragraph = " ".join(texts.get(video, []))
            videos.add(video, [paragraph], split, span=_SPAN)
    videos.finish()
