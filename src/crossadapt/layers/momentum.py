"""Momentum copies and the queue of what they gave: many negatives that cost no gradient.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv 1911.05722;
with soft targets from the momentum copy, Li et al., "Align before Fuse", arXiv 2107.07651.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crossadapt.errors import UserError

NOBODY = -100
"""Key of queue entries that were never written; real keys are 0 or more, so it never matches."""


@torch.no_grad()
def average_into(copy: nn.Module, online: nn.Module, decay: float, buffers: bool = True) -> None:
    """``copy <- decay copy + (1 - decay) online``, for parameters and floating-point buffers.

    Args:
        copy: same structure as `online`.
        online: left as it is.
        decay: share of the copy that stays.
        buffers: whether running statistics are averaged too, or left alone.
    """
    pairs = list(zip(copy.parameters(), online.parameters(), strict=True))
    if buffers:
        pairs += zip(copy.buffers(), online.buffers(), strict=True)  # type: ignore[arg-type]
    for old, new in pairs:
        if old.is_floating_point():
            old.mul_(decay).add_(new, alpha=1 - decay)


class MomentumQueue:
    """The last `size` rows of several streams with their keys, oldest overwritten first.

    Args:
        size: rows, a multiple of `batch`.
        batch: rows that a full batch adds.
        widths: channels of each stream; an entry is filled with unit vectors of random direction.
        keys: keys of a row; two rows belong together when any of their keys is equal.
        seed: of the random directions.

    Raises:
        UserError: the size is no multiple of the batch.
    """

    def __init__(
        self, size: int, batch: int, widths: Mapping[str, list[int]], keys: int, seed: int
    ) -> None:
        if size < batch or size % batch:
            raise UserError(
                f"a queue of {size} rows cannot be filled with batches of {batch}",
                where="queue",
                fix=f"give a multiple of the batch size, such as {max(1, size // batch) * batch}",
            )
        generator = torch.Generator().manual_seed(seed)
        self.rows = {
            name: torch.cat([_directions(size, width, generator) for width in parts], 1)
            for name, parts in widths.items()
        }
        self.keys = torch.full((size, keys), NOBODY, dtype=torch.int64)
        self.pointer = torch.zeros(1, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> MomentumQueue:
        """The queue itself, its rows and keys on a device."""
        self.rows = {name: values.to(device) for name, values in self.rows.items()}
        self.keys = self.keys.to(device)
        return self

    @torch.no_grad()
    def add(self, rows: Mapping[str, Tensor], keys: Tensor) -> None:
        """Write rows (B, width) of each stream and their keys (B, K), B at most the size."""
        count = len(keys)
        start = int(self.pointer)
        places = torch.arange(start, start + count) % len(self)
        for name, values in rows.items():
            self.rows[name][places] = values.detach().float().to(self.rows[name].device)
        self.keys[places] = keys.to(self.keys.device)
        self.pointer.fill_((start + count) % len(self))

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name; written into in place."""
        rows = {f"rows.{name}": values for name, values in self.rows.items()}
        return {**rows, "keys": self.keys, "pointer": self.pointer}


def same_keys(keys: Tensor, others: Tensor) -> Tensor:
    """Bool (N, M): rows of keys (N, K) and (M, K) of which any key is equal."""
    return (keys[:, None] == others[None]).any(2)


def soft_targets(same: Tensor, momentum: Tensor | None, share: float) -> Tensor:
    """Targets (B, M) of a contrastive loss; every row sums to 1.

    ``share softmax(momentum) + (1 - share) same / sum(same)``

    Args:
        same: bool (B, M), which entries belong to the row; at least one in each row.
        momentum: logits (B, M) of the momentum copy; not needed when `share` is 0.
        share: of the momentum copy's opinion, in [0, 1].
    """
    hard = same.float() / same.sum(1, keepdim=True)
    if share == 0 or momentum is None:
        return hard
    return share * momentum.detach().softmax(1) + (1 - share) * hard


def _directions(size: int, width: int, generator: torch.Generator) -> Tensor:
    return nn.functional.normalize(torch.randn(size, width, generator=generator), dim=1)
