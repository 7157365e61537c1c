"""Clips to features, frame by frame, in batches and without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from crossadapt.errors import UserError
from crossadapt.tasks.encode import Pixels, evaluating, need, patch_drop, where

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone
    from crossadapt.backbones.precision import Precision


class Clips(Protocol):
    """Clips by number, such as a `FrameStore`; `frames` is F."""

    @property
    def frames(self) -> int:
        """Frame slots of every clip."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Clip `index`: uint8 (F, 3, H, W) and its mask, bool (F,)."""
        ...


class Stills:
    """Pictures as clips of one frame."""

    frames = 1

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture `index` as uint8 (1, 3, H, W), and its mask."""
        return self.pixels[index][None], np.ones(1, bool)


def are_clips(pixels: Pixels | Clips) -> TypeGuard[Clips]:
    """Whether what is given by number are clips rather than pictures."""
    return hasattr(pixels, "frames")


def as_clips(pixels: Pixels | Clips) -> Clips:
    """Clips as they are, pictures as clips of one frame."""
    return pixels if are_clips(pixels) else Stills(pixels)  # type: ignore[arg-type]


def pictures_only(pixels: Pixels | Clips, task: str) -> Pixels:
    """The pictures of a task that cannot take clips.

    Raises:
        UserError: they are clips.
    """
    if are_clips(pixels):
        raise UserError(
            f"the task {task} takes pictures, and these are clips",
            where="task",
            fix="use the task video-retrieval",
        )
    return pixels  # type: ignore[return-value]


def stack_clips(clips: Clips, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
    """The given clips: uint8 (B, F, 3, H, W) and their mask, bool (B, F)."""
    found = [clips[int(index)] for index in indices]
    return (
        torch.from_numpy(np.stack([pixels for pixels, _ in found])),
        torch.from_numpy(np.stack([mask for _, mask in found])),
    )


@dataclass(frozen=True)
class ClipFeatures:
    """Projected features of all frames, of whatever length: `frames` float32 (N, F, D), zero
    where `mask`, bool (N, F), is False. A similarity head compares them with texts."""

    frames: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, rows: np.ndarray | slice) -> ClipFeatures:
        """The features of some clips."""
        return ClipFeatures(self.frames[rows], self.mask[rows])


def clip_features(
    backbone: Backbone,
    pixels: Tensor,
    mask: Tensor,
    token_drop: float = 0.0,
    clips: Tensor | None = None,
) -> Tensor:
    """Features (B, F, D) of prepared clips uint8 (B, F, 3, H, W), with their graph.

    Args:
        backbone: with whatever adapter is active.
        pixels: normalised here.
        mask: bool (B, F).
        token_drop: share of patch tokens dropped at random, the same places in all frames of a
            clip: what was dropped must not be mistaken for what moved.
        clips: numbers (B,) from 0 of the clips these are; equal ones lose the same places.
    """
    normalised = backbone.preprocess.normalise(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    numbers = torch.arange(len(mask)) if clips is None else clips
    together = numbers[mask.nonzero()[:, 0].cpu()]
    with patch_drop(backbone, token_drop, together):
        return backbone.encode_frames(normalised, mask)


def encode_clips(
    backbone: Backbone,
    clips: Clips,
    frames_at_once: int = 128,
    precision: Precision | None = None,
) -> ClipFeatures:
    """Features of clips, on the CPU.

    Args:
        backbone: with whatever adapter is active; its dropout is off during the call.
        clips: N clips of uint8 frames; normalised here, on the fly.
        frames_at_once: frames encoded at a time, whole clips, at least one.
        precision: number format; chosen from the hardware when None.

    Raises:
        UserError: there are no clips.
    """
    need(len(clips), "clips")
    device, precision = where(backbone, precision)
    batch = max(1, frames_at_once // clips.frames)
    parts, masks = [], []
    with evaluating(backbone), torch.inference_mode():
        for start in range(0, len(clips), batch):
            block = range(start, min(start + batch, len(clips)))
            pixels, mask = stack_clips(clips, block)
            with precision.autocast():
                features = clip_features(backbone, pixels.to(device), mask.to(device))
            parts.append(features.float().cpu())
            masks.append(mask)
    return ClipFeatures(torch.cat(parts).clone(), torch.cat(masks))
