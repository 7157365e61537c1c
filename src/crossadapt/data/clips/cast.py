"""Who appears in the clips: OpenMoji pictures with names that fit into a sentence."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from crossadapt.data import openmoji

_LONGEST = 2  # words
_UNFIT_WORDS = (
    "man woman men women person people boy girl button sign symbol arrow square circle flag",
    "keycap medium large small old new hand hands family couple regional indicator skin tone",
    "component letter copyright registered trade foggy no up down vomiting mark hour minus plus",
    "multiply divide crossed selector",
)
_UNFIT = frozenset(" ".join(_UNFIT_WORDS).split())
"""Words of pictures that look alike when small, or whose names are no things."""


@dataclass(frozen=True)
class Picture:
    """An OpenMoji drawing and the noun that stands for it."""

    code: str
    name: str

    @property
    def plural(self) -> bool:
        """Whether the name is a plural already, such as "grapes"."""
        return self.name.endswith("s") and not self.name.endswith(("ss", "us", "tennis"))


def cast(split: str) -> list[Picture]:
    """The pictures of one split of the built-in data, in order of their code points.

    A picture of one split never appears in a clip of another.

    Args:
        split: ``train``, ``val`` or ``test``.

    Raises:
        UserError: the wheels of the extra ``demo`` are not installed.
    """
    first: dict[str, Picture] = {}
    for row in openmoji.rows():
        if row["split"] == split and not row["flag"]:
            first.setdefault(row["codepoint"], Picture(row["codepoint"], row["text"]))
    return [picture for picture in first.values() if _fits(picture.name)]


def _fits(name: str) -> bool:
    words = name.split()
    plain = re.fullmatch(r"[a-z ]+", name) is not None
    return plain and len(words) <= _LONGEST and not _UNFIT & set(words)


@lru_cache(maxsize=1024)
def drawing(code: str) -> Image.Image:
    """The drawing as RGBA, 96 pixels, transparent around."""
    return Image.open(io.BytesIO(openmoji.sprite_bytes(code, 96))).convert("RGBA")
