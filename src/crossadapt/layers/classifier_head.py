"""From the features of frames to classes: a norm, a pool over frames, a linear layer."""

from __future__ import annotations

from torch import Tensor, nn


class ClassifierHead(nn.Module):
    """``W pool(LN(f_1), ..., LN(f_F)) + b``.

    Args:
        width: features of a frame D.
        frames: F.
        classes: K.
        pooling: ``mean`` over the frames that are there, or ``concat``: side by side.
    """

    def __init__(self, width: int, frames: int, classes: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width * (frames if pooling == "concat" else 1), classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, K) of frame features (B, F, D) with mask bool (B, F)."""
        return self.linear(pool(self.norm(frames.float()), mask, self.pooling))


def pool(frames: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Frames (B, F, D) as (B, D), or (B, F D) for ``concat``; masked ones count as nothing."""
    mask = mask.to(frames.device)
    shown = frames * mask[..., None]
    if pooling == "concat":
        return shown.flatten(1)
    return shown.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
