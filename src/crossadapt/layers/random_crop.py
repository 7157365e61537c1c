"""Random resized crops of whole batches, for a second view of a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RandomCrop:
    """Another crop of every uint8 picture (B, 3, H, W), scaled back to its size."""

    area: tuple[float, float] = (0.4, 1.0)
    """Share of the picture's area that is kept."""
    aspect: float = 4 / 3
    """Largest ratio between the crop's width and height, relative to the picture's."""
    flip: float = 0.0
    """Probability of a mirror image. Off: left and right may be what a text is about."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """New pictures of the same shape; random numbers from torch's global generator."""
        batch = len(pixels)
        area, ratio, x, y, mirrored = torch.rand(5, batch)
        area = self.area[0] + (self.area[1] - self.area[0]) * area
        ratio = torch.exp((2 * ratio - 1) * math.log(self.aspect) / 2)
        width = (area.sqrt() * ratio).clamp_max(1)
        height = (area.sqrt() / ratio).clamp_max(1)
        theta = torch.zeros(batch, 2, 3)
        theta[:, 0, 0] = torch.where(mirrored < self.flip, -width, width)
        theta[:, 1, 1] = height
        theta[:, 0, 2] = (2 * x - 1) * (1 - width)
        theta[:, 1, 2] = (2 * y - 1) * (1 - height)
        shape = [batch, *pixels.shape[1:]]
        grid = F.affine_grid(theta.to(pixels.device), shape, align_corners=False)
        crops = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
        return crops.round().clamp(0, 255).to(torch.uint8)
