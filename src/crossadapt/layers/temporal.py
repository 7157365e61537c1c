"""Frames that see each other: which pictures of a batch form a clip, and a small transformer.

A vision tower works picture by picture. While `clips` is open, a module inside it can ask
`clip_mask` which of the pictures belong together, sort them into clips with `to_clips`, let them
exchange information, and put them back with `to_pictures`. Outside, each picture is a clip of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from crossadapt.layers.bottleneck import quick_gelu

_MASK: ContextVar[Tensor | None] = ContextVar("crossadapt_clip_mask", default=None)


@contextmanager
def clips(mask: Tensor) -> Iterator[None]:
    """Inside the block, the pictures of a vision tower are the unmasked frames of clips.

    Args:
        mask: bool (B, F), True where there is a frame. The tower is given the ``mask.sum()``
            frames that are there, clip after clip.
    """
    token = _MASK.set(mask)
    try:
        yield
    finally:
        _MASK.reset(token)


def clip_mask(pictures: int, device: torch.device) -> Tensor:
    """The mask (B, F) of the clips now being encoded; (pictures, 1), all True, outside `clips`.

    Args:
        pictures: how many pictures the tower was given.
        device: where the result is wanted.
    """
    mask = _MASK.get()
    if mask is None:
        return torch.ones(pictures, 1, dtype=torch.bool, device=device)
    if int(mask.sum()) != pictures:
        raise RuntimeError(f"{pictures} pictures for clips of {int(mask.sum())} frames")
    return mask.to(device)


def to_clips(x: Tensor, mask: Tensor) -> Tensor:
    """Pictures (K, ...) as clips (B, F, ...), K the unmasked frames of `mask`; the rest is zero."""
    if mask.numel() == len(x):
        return x.reshape(*mask.shape, *x.shape[1:])
    full = x.new_zeros(mask.numel(), *x.shape[1:])
    where = mask.reshape(-1).nonzero().squeeze(1)
    return full.index_copy(0, where, x).reshape(*mask.shape, *x.shape[1:])


def to_pictures(x: Tensor, mask: Tensor, pictures: int) -> Tensor:
    """The inverse of `to_clips`: clips (B, F, ...) as their K = `pictures` unmasked frames."""
    return x.flatten(0, 1) if mask.numel() == pictures else x[mask]


class SmallTransformer(nn.Module):
    """One pre-norm transformer block of `width` channels for (B, L, width).

    ``u <- u + MHA(LN(u))``, then ``u <- u + W2 QuickGELU(W1 LN(u))`` with four times the width
    inside; 12 d^2 + 13 d parameters.

    Args:
        width: d.
        heads: attention heads; a divisor of `width`.
        outer: width of the tower around it; the input projection starts at a standard deviation
            of ``outer ** -0.5`` and the other matrices at ``(2 * outer) ** -0.5``.
    """

    def __init__(self, width: int, heads: int, outer: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.normal_(self.qkv.weight, std=outer**-0.5)
        for linear in (self.out, self.fc1, self.fc2):
            nn.init.normal_(linear.weight, std=(2 * outer) ** -0.5)
        for linear in (self.qkv, self.out, self.fc1, self.fc2):
            nn.init.zeros_(linear.bias)

    def forward(self, u: Tensor, visible: Tensor | None = None) -> Tensor:
        """Transform u (B, L, width).

        Args:
            u: the sequence.
            visible: bool, broadcast to (B, heads, L, L); [.., i, j] says that i may look at j.
        """
        batch, length, width = u.shape
        q, k, v = (
            self.qkv(self.norm1(u))
            .reshape(batch, length, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        scores = (q @ k.transpose(-1, -2)).float() * (width // self.heads) ** -0.5
        if visible is not None:
            # Large and finite: a row that may look at nothing gives a mean, not NaN.
            scores = scores.masked_fill(~visible, -1e6)
        mixed = scores.softmax(-1).to(v.dtype) @ v
        u = u + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return u + self.fc2(quick_gelu(self.fc1(self.norm2(u))))


class TemporalCalibration(nn.Module):
    """Frames of a clip look at each other and weigh the channels of what each of them becomes.

        seq    = QuickGELU(TRM(LN([CC, c_1..c_F, p_1..p_F] + pos)))       CC learnable
        alpha_f = 1 + FC2(ReLU(FC1([c'_f + p'_f, G(CC')])))               per channel
        result  = c'_f * alpha_f

    Without class tokens (`classes` False) the sequence is ``[CC, p_1..p_F]``, alpha_f comes from
    ``[p'_f, G(CC')]`` and the result is ``p'_f * alpha_f``.

    Args:
        width: channels d.
        frames: largest F; a clip of fewer uses the first positions.
        heads: attention heads.
        shrink: FC1 gives ``d // shrink`` channels.
        outer: width of the tower, for the initial values.
        classes: whether frames have a class token beside the mean of their patches.
        position_std: standard deviation of the initial position vectors. They are all that tells
            the order of frames, and at first the order weighs no more than they do.
    """

    def __init__(
        self,
        width: int,
        frames: int,
        heads: int,
        shrink: int,
        outer: int,
        classes: bool = True,
        position_std: float = 0.01,
    ) -> None:
        super().__init__()
        self.frames, self.classes = frames, classes
        self.clip = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position = nn.Parameter(torch.randn((1 + classes) * frames + 1, width) * position_std)
        self.norm = nn.LayerNorm(width)
        self.transformer = SmallTransformer(width, heads, outer)
        self.summary = nn.Linear(width, width)
        self.squeeze = nn.Linear(2 * width, width // shrink)
        self.expand = nn.Linear(width // shrink, width, bias=False)
        nn.init.zeros_(self.expand.weight)

    def forward(self, classes: Tensor | None, patches: Tensor, mask: Tensor) -> Tensor:
        """Calibrated frames (B, F, d).

        Args:
            classes: class token of each frame (B, F, d), or None.
            patches: mean patch token of each frame (B, F, d).
            mask: bool (B, F); a masked frame changes no other one.
        """
        count = mask.shape[1]
        parts = [patches] if classes is None else [classes, patches]
        starts = [1 + i * self.frames for i in range(len(parts))]
        position = torch.cat([self.position[:1], *(self.position[s : s + count] for s in starts)])
        clip = self.clip.expand(len(mask), 1, -1)
        sequence = torch.cat([clip, *parts], 1) + position
        seen = torch.cat([torch.ones_like(mask[:, :1]), *([mask] * len(parts))], 1)
        sequence = quick_gelu(self.transformer(self.norm(sequence), seen[:, None, None, :]))
        found = sequence[:, 1:].split(count, 1)
        both = found[0] if classes is None else found[0] + found[1]
        summary = self.summary(sequence[:, :1]).expand_as(both)
        gain = self.expand(torch.relu(self.squeeze(torch.cat([both, summary], -1))))
        return found[0] * (1 + gain)
