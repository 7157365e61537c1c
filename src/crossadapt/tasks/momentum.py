"""A slowly following copy of what is trained, and a queue of the features it has made.

He et al. 2020, "Momentum Contrast", arXiv 1911.05722; with soft targets as in ALBEF (arXiv
2107.07651) and BLIP (arXiv 2201.12086).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


class MomentumCopy:
    """Trained tensors and their running mean ``m <- decay * m + (1 - decay) * value``.

    It starts at the values the tensors have when it is made. Each tensor is updated once per call,
    also when several towers share it.

    Args:
        trained: the tensors by name.
        decay: in [0, 1).
    """

    def __init__(self, trained: Mapping[str, Parameter], decay: float) -> None:
        self.trained, self.decay = dict(trained), decay
        self.mean = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Follow the trained tensors by one step."""
        for name, p in self.trained.items():
            self.mean[name].lerp_(p.detach(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the trained tensors have the running means as values; no gradients."""
        kept = {name: p.data for name, p in self.trained.items()}
        try:
            for name, p in self.trained.items():
                p.data = self.mean[name]
            with torch.no_grad():
                yield
        finally:
            for name, p in self.trained.items():
                p.data = kept[name]

    def state(self) -> dict[str, Tensor]:
        """The running means, live."""
        return {f"momentum.{name}": mean for name, mean in self.mean.items()}


class FeatureQueue:
    """The last `size` pairs of unit features, with the keys that tell which belong together.

    It starts empty.

    Args:
        size: pairs held; 0 holds none.
        dim: D of the features.
        keys: names of the integer keys of a pair.
        device: where it is kept.
    """

    def __init__(
        self, size: int, dim: int, keys: tuple[str, ...], device: torch.device | str = "cpu"
    ) -> None:
        self.size = size
        self._features = {s: torch.zeros(size, dim, device=device) for s in ("image", "text")}
        self._keys = {k: torch.zeros(size, dtype=torch.int64, device=device) for k in keys}
        self._added = torch.zeros((), dtype=torch.int64)

    def __len__(self) -> int:
        return min(self.size, int(self._added))

    def features(self, stream: str) -> Tensor:
        """Features (n, D) of ``image`` or ``text``, in the order of `key`."""
        return self._features[stream][: len(self)]

    def key(self, name: str) -> Tensor:
        """One key (n,) of the pairs it holds."""
        return self._keys[name][: len(self)]

    @torch.no_grad()
    def add(self, features: Mapping[str, Tensor], keys: Mapping[str, Tensor]) -> None:
        """Put pairs in, in place of the oldest; of more than `size` the last ones stay."""
        if self.size == 0:
            return
        count = len(features["image"])
        kept = min(count, self.size)
        start = int(self._added) + count - kept
        places = torch.arange(start, start + kept) % self.size
        for stores, rows in ((self._features, features), (self._keys, keys)):
            for name, store in stores.items():
                store[places.to(store.device)] = rows[name][count - kept :].to(store)
        self._added += count

    def state(self) -> dict[str, Tensor]:
        """Everything it holds, live."""
        features = {f"queue.{name}": x for name, x in self._features.items()}
        keys = {f"queue.key.{name}": x for name, x in self._keys.items()}
        return {**features, **keys, "queue.added": self._added}
