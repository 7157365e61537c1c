"""What a worker makes of one picture when nothing but the model's pixels is wanted; no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.data.decoding import Unreadable, decode_near

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class PixelReader:
    """Reads one picture and prepares it; sent to the workers of `data.pool.stream`.

    Args:
        transform: RGB picture to the model's uint8 (3, H, W).
        needs: least width and height it wants (`crossadapt.data.decoding.decode_near`).
    """

    transform: Callable[[Any], Any]
    needs: tuple[int, int]

    def read_task(self, item: str, content: bytes | None, max_pixels: int) -> dict[str, Any]:
        """The picture's ``pixels``.

        Raises:
            Unreadable: it cannot be decoded or prepared.
        """
        image, _ = decode_near(item if content is None else content, self.needs,
                               max_pixels=max_pixels)  # fmt: skip
        try:
            return {"pixels": np.ascontiguousarray(self(image)).tobytes()}
        except Exception as error:
            # An odd picture (1 x 9000 pixels, say) must not end the run.
            what = f"preprocessing failed: {type(error).__name__}: {error}"
            raise Unreadable(what) from error

    def __call__(self, image: Image.Image) -> np.ndarray:
        """One picture, as the plain transform."""
        return np.asarray(self.transform(image))
