"""Texts and numeric signals as tokens that a vision tower can attend to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from crossadapt.data.signals import Signals

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

_WAVES = 4


def text_tokens(backbone: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
    """What the frozen text tower makes of every token, (B, L, D), each of mean 0 and variance 1.

    The output of the last layer, without gradient.
    """
    model = backbone.model if backbone.shadow is None else backbone.shadow
    site = [s for s in backbone.sites() if s.tower == "text" and s.kind == "block"][-1]
    kept: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = model.get_submodule(site.path).register_forward_hook(keep)
    try:
        with torch.no_grad():
            backbone.encode_text(ids, mask)
    finally:
        handle.remove()
    return functional.layer_norm(kept[-1].float(), kept[-1].shape[-1:])


class SignalTokens:
    """Numeric series as tokens: one for each moment.

    A token holds the values (scaled to mean 0 and deviation 1 over the training items, 0 where
    nothing was measured), for each channel whether there was a value, and where in the series it
    stands: sin and cos of pi k t, k = 1 to 4, t from 0 to 1.

    Args:
        mean: of each channel, (channels,).
        std: of each channel; a channel that never changes has 1.
        limit: most tokens; a longer series is averaged over equal parts.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, limit: int) -> None:
        self.mean, self.std, self.limit = mean, std, limit

    @classmethod
    def fit(cls, signals: Signals, limit: int) -> SignalTokens:
        """Scales from the series of the training items."""
        stacked = np.concatenate([s for s in signals.series if s is not None]).astype(np.float64)
        seen = ~np.isnan(stacked)
        count = np.maximum(seen.sum(0), 1)
        mean = np.where(seen, stacked, 0).sum(0) / count
        std = np.sqrt(np.where(seen, (stacked - mean) ** 2, 0).sum(0) / count)
        return cls(mean.astype(np.float32), np.where(std > 1e-8, std, 1).astype(np.float32), limit)

    @property
    def size(self) -> int:
        """Channels of a token."""
        return token_size(len(self.mean))

    def __call__(self, series: np.ndarray) -> Tensor:
        """Tokens (T, size) of one series (moments, channels); T at most `limit`."""
        if len(series) > self.limit:
            parts = np.array_split(series, self.limit)
            series = np.stack([_mean_of_measured(part) for part in parts])
        seen = ~np.isnan(series)
        values = np.where(seen, (series - self.mean) / self.std, 0)
        time = np.linspace(0, 1, len(series)) if len(series) > 1 else np.zeros(1)
        angles = np.pi * time[:, None] * np.arange(1, _WAVES + 1)
        tokens = np.concatenate([values, seen, np.sin(angles), np.cos(angles)], axis=1)
        return torch.from_numpy(tokens.astype(np.float32))


def token_size(channels: int) -> int:
    """Channels of a token made of so many signals."""
    return 2 * channels + 2 * _WAVES


def padded(tokens: list[Tensor | None], size: int) -> tuple[Tensor, Tensor]:
    """Series of tokens as one tensor (B, T, size) and its mask (B, T); None has no token."""
    length = max([1, *(len(t) for t in tokens if t is not None)])
    full = torch.zeros(len(tokens), length, size)
    mask = torch.zeros(len(tokens), length, dtype=torch.bool)
    for row, found in enumerate(tokens):
        if found is not None:
            full[row, : len(found)] = found
            mask[row, : len(found)] = True
    return full, mask


def resampled(tokens: Tensor | None, points: int, size: int) -> Tensor:
    """Tokens (T, size) at `points` evenly spaced moments, flat; zeros for None."""
    if tokens is None:
        return torch.zeros(points * size)
    line = functional.interpolate(tokens.T[None], points, mode="linear", align_corners=True)
    return line[0].T.reshape(-1)


def _mean_of_measured(part: np.ndarray) -> np.ndarray:
    seen = ~np.isnan(part)
    total = np.where(seen, part, 0).sum(0)
    return np.where(seen.any(0), total / np.maximum(seen.sum(0), 1), np.nan)
