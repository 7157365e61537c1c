"""Evaluation protocols of the published text-video sets; videos stand where images do elsewhere.

| name | videos | texts | video to text |
|---|---|---|---|
| `msrvtt-1k-a` | 1,000 | one each | rank of the one text |
| `msrvtt-full` | 2,990 | about 20 each | best caption of each video's group |
| `msvd` | 670 | about 40 each | best caption of each video's group |
| `didemo` | 1,004 | one paragraph each | rank of the one text |
| `activitynet` | 4,917 | one paragraph each | rank of the one text |
| `lsmdc` | 1,000 | one each | rank of the one text |
| `vatex` | 1,500 | ten each | best caption of each video's group |

In all of them every text is a query against all videos. Where a video has several texts, video to
text compares groups: the score of a group is that of its best caption, and the rank is that of the
own group among as many groups as there are videos (CLIP4Clip's rule for MSVD; that the other two
use it is our reading of the tables). Ties get the average rank. The released metric code of these
papers counts every tied position as a rank of its own, which returns more ranks than queries.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crossadapt.errors import UserError
from crossadapt.evaluation.protocols import Protocol, register_protocol


def _sized(name: str, videos: int, texts: int | None) -> Callable[[np.ndarray, np.ndarray], None]:
    """A check for so many videos, each its own group, and `texts` texts each (None: any)."""

    def check(video_codes: np.ndarray, text_codes: np.ndarray) -> None:
        own = len(np.unique(video_codes))
        per_video = np.bincount(text_codes, minlength=own)
        fine = len(video_codes) == own == videos == len(per_video) and per_video.min() > 0
        if fine and (texts is None or (per_video == texts).all()):
            return
        each = "at least one text" if texts is None else f"exactly {texts} text(s)"
        raise UserError(
            f"{name} wants {videos:,} videos, each its own group, with {each} each",
            where=f"found {len(video_codes):,} videos in {own:,} groups and {len(text_codes):,} "
            f"texts, {int(per_video.min())} to {int(per_video.max())} per group",
            fix="evaluate the complete test split, or use the protocol 'pairs' and say so",
        )

    return check


_ONE = "one text each; text to video and video to text: rank of the one right item"
_GROUPED = (
    "every text is a query; video to text: rank of the video's own group of texts, a group scoring "
    "as its best text does"
)
_DEFINED = (
    ("msrvtt-1k-a", "MSR-VTT 1k-A (JSFusion)", 1000, 1, _ONE),
    ("msrvtt-full", "MSR-VTT, full test split", 2990, None, _GROUPED),
    ("msvd", "MSVD test split", 670, None, _GROUPED),
    ("didemo", "DiDeMo test split, paragraphs", 1004, 1, _ONE),
    ("activitynet", "ActivityNet Captions val_1, paragraphs", 4917, 1, _ONE),
    ("lsmdc", "LSMDC, the 1,000 public test clips", 1000, 1, _ONE),
    ("vatex", "VATEX, 1,500 test videos", 1500, 10, _GROUPED),
)
VIDEO_PROTOCOLS = tuple(
    register_protocol(
        Protocol(
            name,
            f"\n{title}: {videos:,} videos, {rule}.\n",
            _sized(name, videos, texts),
            grouped_captions=rule == _GROUPED,
        )
    ).name
    for name, title, videos, texts, rule in _DEFINED
)
"""Their names."""
