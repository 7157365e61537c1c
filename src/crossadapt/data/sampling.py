"""Which rows go into which batch: a pure function of seed and epoch, so that runs can resume."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Literal

import numpy as np

from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError


class PairSampler:
    """Batches of row numbers of a manifest.

    The plan of an epoch depends on (seed, epoch) and nothing else; the state of a run is the seed,
    the epoch and the number of the next batch. Rows of one group are kept out of one batch where
    possible. A global batch never holds a single row: a remainder of one joins the batch before.

    Args:
        manifest: the rows to draw from.
        batch_size: rows of a global batch; at least 2 and a multiple of `world`.
        seed: of the permutations.
        captions: ``one`` random text per item and epoch, or ``all`` rows.
        drop_last: leave out a last batch that is smaller, unless it is the only one.
        rank: this process.
        world: number of processes. All get slices of equal size of the same global batch; for
            that, up to world - 1 rows of the last batch are left out of an epoch.

    Raises:
        UserError: fewer than two rows, or a batch size that does not fit.
    """

    def __init__(
        self,
        manifest: Manifest,
        batch_size: int,
        *,
        seed: int = 0,
        captions: Literal["one", "all"] = "one",
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._items = manifest.item_index
        self._groups = manifest.groups
        self.batch_size, self.seed, self.captions = batch_size, seed, captions
        self.drop_last, self.rank, self.world = drop_last, rank, world
        self.rows = len(manifest.items) if captions == "one" else len(manifest)
        self._planned: tuple[int, list[np.ndarray]] | None = None
        if captions not in ("one", "all"):
            raise UserError(f"captions={captions!r}", where="captions", fix="use 'one' or 'all'")
        if batch_size < 2 or batch_size % world:
            raise UserError(
                f"a batch of {batch_size} over {world} process(es) cannot be trained on",
                where="batch_size",
                fix="contrastive training needs at least 2, a multiple of the number of processes",
            )
        if self.rows < max(2, world):
            raise UserError(
                f"only {self.rows} item(s) to train on",
                where=manifest.source or "train split",
                fix="a batch needs at least 2; add data or change the split",
            )
        self._sizes = self._batch_sizes()

    def __len__(self) -> int:
        """Number of batches of an epoch, the same for every epoch and rank."""
        return len(self._sizes)

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """This rank's slices of the epoch's batches, int64 row numbers, from batch `start` on."""
        for index in range(start, len(self)):
            yield self.batch(epoch, index)

    def batch(self, epoch: int, index: int) -> np.ndarray:
        """This rank's slice of one global batch: int64 (global size / world,)."""
        whole = self.global_batch(epoch, index)
        share = len(whole) // self.world
        return whole[self.rank * share : (self.rank + 1) * share]

    def global_batch(self, epoch: int, index: int) -> np.ndarray:
        """All row numbers of one batch, the slices of all ranks in order."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._plan(epoch))
        return self._planned[1][index]

    def _batch_sizes(self) -> list[int]:
        full, rest = divmod(self.rows, self.batch_size)
        sizes = [self.batch_size] * full
        rest -= rest % self.world
        if full and (self.drop_last or rest == 0):
            return sizes
        if rest == 1 and full:
            sizes[-1] += 1
        else:
            sizes.append(rest)
        return sizes

    def _plan(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self._items))
        if self.captions == "one":
            # In a random order of rows, the first row of each item is a random one of its rows.
            _, first = np.unique(self._items[order], return_index=True)
            order = order[np.sort(first)]
        batches = _spread(order, self._groups, self._sizes)
        _repair(batches, self._groups)
        return [np.asarray(batch, np.int64) for batch in batches]


def _spread(order: np.ndarray, groups: np.ndarray, sizes: list[int]) -> list[list[int]]:
    """Fill batches in order; a row whose group is already in the batch waits for the next one.

    A group with more rows than there are batches must repeat; its rows are spread evenly.
    """
    rows = iter(order.tolist())
    left = Counter(groups[order].tolist())
    waiting: dict[int, deque[int]] = {}
    batches = []
    for index, size in enumerate(sizes):
        batch: list[int] = []
        present: Counter[int] = Counter()
        share = {
            g: -(-n // (len(sizes) - index)) for g, n in left.items() if n > len(sizes) - index
        }

        def put(row: int, group: int, batch: list[int] = batch, present: Counter = present) -> None:
            batch.append(row)
            present[group] += 1
            left[group] -= 1

        for group in list(waiting)[:size]:
            queue = waiting[group]
            while queue and len(batch) < size and present[group] < share.get(group, 1):
                put(queue.popleft(), group)
            if not queue:
                del waiting[group]
        while len(batch) < size:
            row = next(rows, None)
            if row is None:
                break
            group = int(groups[row])
            if present[group] < share.get(group, 1):
                put(row, group)
            else:
                waiting.setdefault(group, deque()).append(row)
        while len(batch) < size:
            # Only rows of groups already present are left; `_repair` looks for a better place.
            group = max(waiting, key=lambda name: len(waiting[name]))
            put(waiting[group].pop(), group)
            if not waiting[group]:
                del waiting[group]
        batches.append(batch)
    return batches


def _repair(batches: list[list[int]], groups: np.ndarray) -> None:
    """Swap repeated rows, in place, with rows of other batches where neither becomes a repeat."""
    members = [{int(groups[row]) for row in batch} for batch in batches]
    hopeless: set[int] = set()
    for at, batch in enumerate(batches):
        if len(members[at]) == len(batch):
            continue
        seen: set[int] = set()
        for place, row in enumerate(batch):
            group = int(groups[row])
            if group not in seen:
                seen.add(group)
            elif group not in hopeless and not _swap(batches, members, groups, at, place):
                hopeless.add(group)
            else:
                seen.add(int(groups[batch[place]]))


def _swap(
    batches: list[list[int]],
    members: list[set[int]],
    groups: np.ndarray,
    at: int,
    place: int,
) -> bool:
    group = int(groups[batches[at][place]])
    for other, batch in enumerate(batches):
        if other == at or group in members[other] or len(members[other]) < len(batch):
            continue
        for position, row in enumerate(batch):
            theirs = int(groups[row])
            if theirs not in members[at]:
                batch[position], batches[at][place] = batches[at][place], row
                members[other] = members[other] - {theirs} | {group}
                members[at].add(theirs)
                return True
    return False
