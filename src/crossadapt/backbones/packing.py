"""One input for several models: each picture and text prepared for every member, side by side.

The rest of the package hands on one pixel tensor and one id tensor per batch. A fused backbone
packs into them what each of its members needs, exactly as that member prepares it:

* pictures stand under each other on one canvas, (3, sum of heights, largest width), black where a
  narrower member leaves room; cut out again they are bit for bit what the member made;
* ids stand beside each other, each member in columns of its own that are as many as its text tower
  has positions. The mask is False in unused columns, so rows can be cut and sorted as usual.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossadapt.backbones.base import Preprocess, TokenBatch
from crossadapt.backbones.tokenizing import Tokens, cut
from crossadapt.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


@dataclass(frozen=True)
class PackedPreprocess:
    """The picture preparations of several members as one; `parts` are theirs, in order."""

    parts: tuple[Preprocess, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvas."""
        return sum(p.size[0] for p in self.parts), max(p.size[1] for p in self.parts)

    @property
    def needs(self) -> tuple[int, int]:
        """Least width and height of a picture that no member enlarges."""
        return max(p.needs[0] for p in self.parts), max(p.needs[1] for p in self.parts)

    def array(self, image: Image.Image) -> np.ndarray:
        """What `pixels` gives, as an array."""
        return self.pixels(image).numpy()

    def pixels(self, image: Image.Image) -> Tensor:
        """A picture as every member resizes and crops it: uint8 (3, H, W) of the canvas."""
        canvas = torch.zeros(3, *self.size, dtype=torch.uint8)
        for part, place in zip(self.parts, self.split(canvas[None]), strict=True):
            place[0].copy_(part.pixels(image))
        return canvas

    def normalise(self, pixels: Tensor) -> Tensor:
        """Canvases uint8 (B, 3, H, W) to float32, each member's region by its own constants."""
        out = torch.zeros(pixels.shape, dtype=torch.float32, device=pixels.device)
        regions = zip(self.parts, self.split(pixels), self.split(out), strict=True)
        for part, source, target in regions:
            target.copy_(part.normalise(source))
        return out

    def __call__(self, image: Image.Image) -> Tensor:
        """Both halves for one picture: float32 (3, H, W)."""
        return self.normalise(self.pixels(image)[None])[0]

    def split(self, canvas: Tensor) -> list[Tensor]:
        """Views of the members' regions (B, 3, H_i, W_i) in canvases (B, 3, H, W).

        Raises:
            UserError: the tensor is no batch of such canvases.
        """
        if tuple(canvas.shape[-2:]) != self.size:
            raise UserError(
                f"pictures of {tuple(canvas.shape[-2:])} where the canvas is {self.size}",
                fix="prepare pictures with the fused backbone's own preprocess",
            )
        found, top = [], 0
        for height, width in (part.size for part in self.parts):
            found.append(canvas[..., top : top + height, :width])
            top += height
        return found

    def to_dict(self) -> dict[str, Any]:
        """What each member does, for records."""
        return {"parts": [repr(part) for part in self.parts]}


class PackedTokens(Tokens):
    """The tokenising of several members as one.

    Args:
        parts: theirs, in order.
        lengths: columns of each, the longest text its tower takes.
    """

    def __init__(self, parts: Sequence[Any], lengths: Sequence[int]) -> None:
        self.parts, self.lengths = tuple(parts), tuple(lengths)
        self.max_length = sum(lengths)

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to ids and mask (B, L), L all columns of all members."""
        batches = [part(texts) for part in self.parts]
        ids = torch.zeros(len(batches[0].ids), self.max_length, dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        start = 0
        for batch, length in zip(batches, self.lengths, strict=True):
            end = start + batch.ids.shape[1]
            ids[:, start:end], mask[:, start:end] = batch.ids, batch.mask
            start += length
        return TokenBatch(ids, mask)

    def split(self, ids: Tensor, mask: Tensor) -> list[TokenBatch]:
        """Each member's ids and mask, cut to its longest text among the rows (B, L)."""
        found, start = [], 0
        for length in self.lengths:
            columns = slice(start, start + length)
            found.append(cut(TokenBatch(ids[:, columns], mask[:, columns])))
            start += length
        return found

    def make_room(self, ids: Tensor, count: int) -> Tensor:
        """Always raises `UserError`: the members' sequences are not lengthened."""
        raise UserError(
            "prompts cannot be put into the texts of a fused backbone",
            fix="train prompts on one backbone, or use the method hada",
        )

    @property
    def identity(self) -> str:
        """Hash of the members' vocabularies and rules."""
        parts = "\0".join(part.identity for part in self.parts)
        return hashlib.sha256(parts.encode()).hexdigest()
