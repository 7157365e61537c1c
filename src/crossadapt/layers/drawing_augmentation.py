"""Batched augmentation for drawings on white: pose, colour, outline and line art.

Drawing sets differ in stroke, palette and finish far more than in shape. Redrawing a picture with
another outline, palette or as bare strokes while its name stays the same teaches a vision tower to
ignore style, which is what pico-clip is trained for. All operations act on whole batches in torch;
the random numbers come from torch's global generator, so a saved generator state replays them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DrawingAugmentation:
    """Random redrawing of uint8 pictures (B, 3, H, W); probabilities are per picture."""

    scale: tuple[float, float] = (0.8, 1.1)
    """Size relative to the original."""
    rotation: float = 10.0
    """Largest turn in degrees."""
    shift: float = 0.06
    """Largest move as a share of the picture's side."""
    shear: float = 0.12
    """Largest shear and difference between horizontal and vertical scale."""
    ink: tuple[float, float] = (0.7, 1.1)
    """Depth of the colours relative to the original."""
    colour: float = 0.25
    """Spread of the random colour matrix; 0 keeps the palette."""
    outline: float = 0.35
    """Probability of dark strokes along colour edges."""
    line_art: float = 0.05
    """Probability of keeping the strokes only."""
    grey: float = 0.08
    """Probability of dropping colour."""
    flat: float = 0.15
    """Probability of few, flat colour levels."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Redraw uint8 (B, 3, H, W) as uint8 of the same shape."""
        ink = 1.0 - pixels.float() / 255.0  # white is 0, so zero padding continues the background
        ink = self._move(ink)
        batch = len(ink)
        noise = (torch.rand(batch, 3, 3) - 0.5) * 2 * self.colour
        low, high = self.ink
        matrix = torch.eye(3) * (low + (high - low) * torch.rand(batch, 1, 1)) + noise
        grey = torch.rand(batch, 1, 1) < self.grey
        matrix = torch.where(grey, torch.full((3, 3), 1 / 3), matrix).to(ink)
        ink = torch.einsum("bij,bjhw->bihw", matrix, ink).clamp_(0, 1)
        flat = torch.rand(batch) < self.flat
        if flat.any():
            levels = torch.randint(2, 6, (int(flat.sum()), 1, 1, 1)).to(ink)
            ink[flat] = (ink[flat] * levels).round() / levels
        strokes = torch.rand(batch) < self.outline + self.line_art
        if strokes.any():
            ink[strokes] = self._stroke(ink[strokes])
        return ((1.0 - ink) * 255.0).round_().to(torch.uint8)

    def _move(self, ink: Tensor) -> Tensor:
        batch = len(ink)
        low, high = self.scale
        size = low + (high - low) * torch.rand(batch)
        angle = (torch.rand(batch) * 2 - 1) * self.rotation * torch.pi / 180
        stretch = 1 + (torch.rand(batch) * 2 - 1) * self.shear
        slant = (torch.rand(batch) * 2 - 1) * self.shear
        cos, sin = angle.cos() / size, angle.sin() / size
        theta = torch.zeros(batch, 2, 3)
        theta[:, 0, 0], theta[:, 0, 1] = cos * stretch, -sin + slant
        theta[:, 1, 0], theta[:, 1, 1] = sin, cos / stretch
        theta[:, :, 2] = (torch.rand(batch, 2) * 2 - 1) * 2 * self.shift
        grid = F.affine_grid(theta.to(ink), list(ink.shape), align_corners=False)
        return F.grid_sample(ink, grid, align_corners=False)

    def _stroke(self, ink: Tensor) -> Tensor:
        batch = len(ink)
        edges = (F.max_pool2d(ink, 3, 1, 1) + F.max_pool2d(-ink, 3, 1, 1)).amax(1, keepdim=True)
        strokes = (edges * (1 + 4 * torch.rand(batch, 1, 1, 1).to(ink))).clamp_(0, 1)
        only = torch.rand(batch) < self.line_art / max(self.outline + self.line_art, 1e-9)
        ink = torch.where(only.view(-1, 1, 1, 1).to(ink.device), 0.0, ink)
        return torch.maximum(ink, strokes)


POSE_ONLY = DrawingAugmentation(
    scale=(0.85, 1.1), rotation=8.0, shift=0.05, shear=0.08,
    ink=(0.95, 1.05), colour=0.0, outline=0.0, line_art=0.0, grey=0.0, flat=0.0,
)  # fmt: skip
"""Moves the drawing and keeps its style, for adapting to one style."""
