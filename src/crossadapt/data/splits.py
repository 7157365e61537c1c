"""Train, val and test by hashing group names: the same data give the same split everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from crossadapt.errors import UserError

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}

_SYNONYMS = {
    "training": "train",
    "restval": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "development": "val",
    "testing": "test",
}


def canonical(name: str) -> str:
    """The project's word for a split: ``validation`` is ``val``, ``restval`` is ``train``, …"""
    lowered = name.strip().lower()
    return _SYNONYMS.get(lowered, lowered)


def is_split_name(name: str) -> bool:
    """Whether a folder or data-set key called `name` says which split it holds."""
    return canonical(name) in DEFAULT_FRACTIONS


def position(group: str, seed: int | str) -> float:
    """A number in [0, 1) that depends on the group's name and the seed and on nothing else."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()
    # 53 bits fit a float exactly; with all 64 the largest values would round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def assign(
    groups: Sequence[str],
    *,
    seed: int | str = 0,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
) -> list[str]:
    """Give every row the split of its group.

    A group's split depends on its name and the seed, so adding data later moves nothing. Small
    sets are the exception: when chance leaves a split with fewer than two groups, the groups
    nearest to it by hash move there, from the largest split (one group when there are fewer than
    two per split, and none when there are fewer groups than splits: then the first-named splits
    are filled with the last kept for last, i.e. train and test before val).

    Args:
        groups: group name of each row.
        seed: part of the hash.
        fractions: share of each split; they must add up to 1.

    Returns:
        One split name per row; rows of one group always get the same.

    Raises:
        UserError: fractions are negative or do not add up to 1.
    """
    if any(value < 0 for value in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(
            "split fractions must be non-negative and add up to 1",
            where=", ".join(f"{name}={value}" for name, value in fractions.items()),
            fix="for example train=0.8, val=0.1, test=0.1",
        )
    bounds: list[tuple[str, float, float]] = []
    start = 0.0
    for name, value in fractions.items():
        if value > 0:
            bounds.append((name, start, start + value))
            start += value
    placed: dict[str, str] = {}
    where: dict[str, float] = {}
    for group in groups:
        if group not in placed:
            where[group] = position(group, seed)
            placed[group] = next(
                (name for name, low, high in bounds if low <= where[group] < high), bounds[-1][0]
            )
    _fill_small(placed, where, bounds)
    return [placed[group] for group in groups]


def _fill_small(
    placed: dict[str, str],
    where: Mapping[str, float],
    bounds: Sequence[tuple[str, float, float]],
) -> None:
    """Move groups, in place, until every split has the least number it can be given."""
    least = 2 if len(placed) >= 2 * len(bounds) else 1
    if len(placed) < len(bounds):
        # train first, then test: a model that cannot be measured is of no use.
        order = [bounds[0], *reversed(bounds[1:])]
        bounds = order[: len(placed)]
        allowed = {name for name, _, _ in bounds}
        for group, name in placed.items():
            if name not in allowed:
                placed[group] = bounds[0][0]
    for name, low, high in bounds:
        middle = (low + high) / 2
        members = [group for group, split in placed.items() if split == name]
        for _ in range(least - len(members)):
            counts = {other: 0 for other, _, _ in bounds}
            for split in placed.values():
                counts[split] += 1
            largest = max(counts, key=lambda other: counts[other])
            donors = [group for group, split in placed.items() if split == largest]
            nearest = min(donors, key=lambda group: (abs(where[group] - middle), group))
            placed[nearest] = name
