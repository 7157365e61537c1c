"""Generated clips of OpenMoji pictures that move: a test of time that needs no download."""

from crossadapt.data.clips.events import EVENTS_MANIFEST, write_events
from crossadapt.data.clips.generate import FACTS, MANIFEST, MASKS, SIZES, Size, make_clips

__all__ = [
    "EVENTS_MANIFEST",
    "FACTS",
    "MANIFEST",
    "MASKS",
    "SIZES",
    "Size",
    "make_clips",
    "write_events",
]
