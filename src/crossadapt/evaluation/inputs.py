"""Checks at the door: features become float32 matrices, group names become integers."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from crossadapt.errors import UserError
from crossadapt.parallel import spread

Features = Any  # a torch tensor on any device, or anything numpy can read; (N, D)
Groups = Any  # N hashable names: a list, a numpy array or a torch tensor
_ROWS = 64
"""Rows scaled at once: they stay in the processor's cache from the first step to the last."""
_PART = 64 * _ROWS
"""Rows that one thread scales."""
_SAFE = (1e-25, 1e37)
"""Between these, a sum of squares has neither overflowed nor lost much to underflow."""


def as_matrix(features: Features, name: str) -> np.ndarray:
    """Return `features` as a C-contiguous float32 array (N, D); `name` is used in errors.

    Torch tensors are detached, moved to the CPU and cast, so bfloat16 is welcome. torch itself is
    not imported.

    Raises:
        UserError: not two-dimensional, empty, not numeric, or holding NaN or infinity.
    """
    if hasattr(features, "detach"):
        features = features.detach().cpu().float().numpy()
    array = np.asarray(features)
    if array.dtype.kind not in "fiub":
        raise UserError(
            f"{name} are not numbers",
            where=f"dtype {array.dtype}",
            fix="pass a floating-point array of shape (items, width)",
        )
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(
            f"{name} must be a non-empty matrix",
            where=f"shape {array.shape}",
            fix="pass one row per item: (items, width)",
        )
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    # NaN and infinity survive in a sum; finite numbers can overflow there, so look again.
    with np.errstate(over="ignore", invalid="ignore"):
        bad = ~np.isfinite(np.add.reduce(array, axis=1))
    bad[bad] = ~np.isfinite(array[bad]).all(axis=1)
    if bad.any():
        raise UserError(
            f"{name} hold NaN or infinity in {int(bad.sum())} of {len(array)} rows",
            where=f"first bad row: {int(bad.argmax())}",
            fix="the model that made them diverged or an input was broken: lower the learning "
            "rate or check that item",
        )
    return array


def as_names(groups: Groups, count: int, name: str) -> list[Hashable]:
    """Return `groups` as a list of `count` hashable names; `name` is used in errors."""
    if hasattr(groups, "detach"):
        groups = groups.detach().cpu()
    names = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(names) != count:
        raise UserError(
            f"{name} do not match the features",
            fix="pass one group name per row",
            where=f"{len(names)} groups for {count} rows",
        )
    # Asked once per type: a set of names has thousands of rows and one type.
    if not all(issubclass(kind, Hashable) for kind in set(map(type, names))):
        unhashable = [n for n in names if not isinstance(n, Hashable)]
        raise UserError(
            f"{name} must be strings or numbers",
            where=repr(unhashable[0])[:80],
            fix="pass one string or integer per row, not nested lists",
        )
    return names


def encode_groups(*sides: Sequence[Hashable]) -> list[np.ndarray]:
    """Number the groups by first appearance over all `sides`; one int64 array per side."""
    names = dict.fromkeys(itertools.chain(*sides))
    codes = dict(zip(names, range(len(names)), strict=True))
    return [np.fromiter(map(codes.__getitem__, side), np.int64, len(side)) for side in sides]


def check_widths(first: np.ndarray, second: np.ndarray, names: str) -> None:
    """Raise `UserError` unless both matrices have the same number of columns."""
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"{names} have different widths",
            where=f"{first.shape[1]} and {second.shape[1]} columns",
            fix="encode both sides with the same model",
        )


def unit_rows(matrix: np.ndarray, name: str) -> np.ndarray:
    """Rows of `matrix` (N, D) scaled to length one; a row of zeros is a `UserError`."""
    found = np.empty_like(matrix)

    def some(first: int) -> None:
        last = min(first + _PART, len(matrix))
        held = np.empty((min(_ROWS, len(matrix)), matrix.shape[1]), np.float32)
        for start in range(first, last, _ROWS):
            rows = slice(start, min(start + _ROWS, last))
            part, out = matrix[rows], found[rows]
            # Row by row, whatever its neighbours are: equal rows stay equal.
            with np.errstate(over="ignore"):
                squares = np.add.reduce(np.square(part, out=held[: len(part)]), axis=1)
            safe = (squares > _SAFE[0]) & (squares < _SAFE[1])
            lengths = np.sqrt(np.where(safe, squares, 1))
            np.divide(part, lengths[:, None], out=out)
            if not safe.all():
                out[~safe] = _scaled(part[~safe], name, start + np.flatnonzero(~safe))

    spread(some, range(0, len(matrix), _PART))
    return found


def _scaled(part: np.ndarray, name: str, numbers: np.ndarray) -> np.ndarray:
    """`unit_rows` of rows whose squares do not fit into float32; `numbers` are those of the rows.

    Scaling by the largest entry first keeps the squares inside float32.
    """
    largest = np.abs(part).max(axis=1, keepdims=True)
    if not largest.all():
        raise UserError(
            f"{name} hold a row of zeros, which has no direction",
            where=f"row {int(numbers[largest[:, 0] == 0][0])}",
            fix="drop that item, or rank by similarity='dot'",
        )
    part = part / largest
    return part / np.sqrt(np.add.reduce(np.square(part), axis=1, keepdims=True))
