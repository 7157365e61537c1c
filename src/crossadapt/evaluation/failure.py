"""A method that has no result, as an entry of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """A method without result for some seeds, and why, on one line."""

    method: str
    reason: str
    seeds: Sequence[int]

    @property
    def text(self) -> str:
        """The reason with its seeds."""
        many = "seeds" if len(self.seeds) > 1 else "seed"
        return f"failed with {many} {', '.join(map(str, self.seeds))}: {self.reason}"
