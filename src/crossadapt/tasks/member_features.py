"""What the members of a fused backbone see of the training rows, computed once.

The members never change and HADA's inputs are not augmented, so their features are the same in
every epoch. They are kept in memory as long as they fit; if not, each batch is encoded anew, which
gives the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crossadapt.backbones.tower_tokens import TokenFeatures
from crossadapt.tasks.base import Inputs

BATCH = 64
Look = Callable[[np.ndarray], Sequence[TokenFeatures]]
"""Row numbers to what each member sees of these rows."""


@dataclass
class Moments:
    """Sums over all values of unit tokens and unit embeddings; padding does not count."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, seen: Sequence[TokenFeatures]) -> None:
        """Count the features of some rows."""
        for member in seen:
            for x in (member.tokens[member.mask], member.embedding):
                unit = F.normalize(x.float(), dim=-1).double()
                self.count += unit.numel()
                self.total += float(unit.sum())
                self.squares += float(unit.square().sum())

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return self.total / self.count

    @property
    def deviation(self) -> float:
        """Standard deviation of all values."""
        return (self.squares / self.count - self.mean**2) ** 0.5


class MemberFeatures:
    """Features of all rows of one stream.

    Args:
        count: rows.
        look: encodes some rows.
        budget: bytes that may be kept.
        moments: every row is counted there.

    Attributes:
        kept: the features of all rows per member; None when they would not fit.
        bytes: size of what is kept.
    """

    def __init__(self, count: int, look: Look, budget: int, moments: Moments) -> None:
        parts: list[Sequence[TokenFeatures]] = []
        self.bytes, fits = 0, True
        with torch.no_grad():
            for start in range(0, count, BATCH):
                seen = look(np.arange(start, min(start + BATCH, count)))
                moments.add(seen)
                size = sum(x.numel() * x.element_size() for x in flat(seen))
                self.bytes += size
                # Judged once, by the first batch, so that it does not depend on the order.
                fits = fits if start else size / len(seen[0].mask) * count <= budget
                if fits:
                    parts.append([_on_cpu(member) for member in seen])
        self.kept = (
            [_stacked(list(member)) for member in zip(*parts, strict=True)] if fits else None
        )
        self.bytes = self.bytes if fits else 0

    def rows(self, index: Tensor) -> Inputs | None:
        """Features of some rows, padding cut to their longest; None when they are not kept."""
        if self.kept is None:
            return None
        found = []
        for member in self.kept:
            mask = member.mask[index]
            used = int(mask.any(0).nonzero().max()) + 1
            tokens = member.tokens[index, :used]
            found.append(TokenFeatures(member.embedding[index], tokens, mask[:, :used]))
        return flat(found)


def flat(seen: Sequence[TokenFeatures]) -> Inputs:
    """Three tensors per member, whose first axis is the row axis."""
    return tuple(x for member in seen for x in (member.embedding, member.tokens, member.mask))


def unflat(inputs: Inputs) -> list[TokenFeatures]:
    """The inverse of `flat`."""
    return [TokenFeatures(*inputs[i : i + 3]) for i in range(0, len(inputs), 3)]


def _on_cpu(member: TokenFeatures) -> TokenFeatures:
    return TokenFeatures(member.embedding.cpu(), member.tokens.cpu(), member.mask.cpu())


def _stacked(parts: Sequence[TokenFeatures]) -> TokenFeatures:
    """All rows as one, padded to the longest."""
    longest = max(part.tokens.shape[1] for part in parts)
    tokens = [F.pad(p.tokens, (0, 0, 0, longest - p.tokens.shape[1])) for p in parts]
    masks = [F.pad(p.mask, (0, longest - p.mask.shape[1])) for p in parts]
    return TokenFeatures(
        torch.cat([p.embedding for p in parts]), torch.cat(tokens), torch.cat(masks)
    )
