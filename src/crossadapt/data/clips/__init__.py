"""Generated clips of OpenMoji pictures that move: a test of time that needs no download."""

from crossadapt.data.clips.generate import FACTS, MANIFEST, MASKS, SIZES, Size, make_clips

__all__ = ["FACTS", "MANIFEST", "MASKS", "SIZES", "Size", "make_clips"]
