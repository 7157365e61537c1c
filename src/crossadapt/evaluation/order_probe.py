"""Does a model know what comes first? Pairs of clips that differ in order alone.

A pair is two clips under captions such as "a cat, then a ball" and "a ball, then a cat". For each
clip the question is which of the two captions scores higher. A model that does not see the order
of frames gives both clips the same scores, so it is right on exactly one of them: 50 %, by
construction and not only on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError
from crossadapt.evaluation.intervals import Interval, bootstrap_mean
from crossadapt.evaluation.protocols import Scores

PROBE, PAIR = "probe", "pair"
"""Attributes of a manifest: whether a row belongs to the probe, and the name of its pair."""
ORDER_PROBE = "order_probe"
"""Name of the score among metrics."""


@dataclass(frozen=True)
class ProbeResult:
    """Share of clips whose own caption wins, in percent, with a bootstrap interval over pairs."""

    accuracy: float
    low: float | None
    high: float | None
    pairs: int
    clips: int

    def format(self) -> str:
        """``71.5 [65.0, 78.0]``."""
        return Interval(self.accuracy, self.low, self.high, 0.95, "bootstrap", self.pairs).format()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ProbeResult:
        """The inverse of `to_dict`."""
        return cls(**record)


def probe_rows(manifest: Manifest) -> Manifest | None:
    """The rows of the probe, those of the training split left out; None when there are none.

    Raises:
        UserError: a pair that does not consist of two clips, or rows without a pair's name.
    """
    if not {PROBE, PAIR} <= set(manifest.attributes):
        return None
    columns = (manifest.table.column(name).to_pylist() for name in (PROBE, "split"))
    wanted = [bool(probe) and split != "train" for probe, split in zip(*columns, strict=True)]
    if not any(wanted):
        return None
    rows = manifest.take(np.flatnonzero(wanted))
    for pair, clips in _pairs(rows).items():
        if not pair or len(clips) != 2:
            raise UserError(
                f"the pair {pair!r} of the order probe has {len(clips)} clips",
                where=manifest.source,
                fix="a pair is two clips whose rows have the same text in the column 'pair'",
            )
    return rows


def complete_pairs(rows: Manifest) -> Manifest | None:
    """The rows of pairs of which both clips are still there; None when there is no such pair."""
    whole = {clip for clips in _pairs(rows).values() if len(clips) == 2 for clip in clips}
    keep = np.flatnonzero([index in whole for index in rows.item_index.tolist()])
    return rows.take(keep) if len(keep) else None


def order_probe(scores: Scores, rows: Manifest) -> ProbeResult:
    """Score the probe.

    Args:
        scores: (numbers of rows (n,), numbers of items (m,)) to scores (n, m).
        rows: what `probe_rows` gave; all its pairs are complete.

    A clip of several captions counts by the share of comparisons that its own captions win; equal
    scores count half.
    """
    index = rows.item_index
    values, names = [], []
    for pair, clips in _pairs(rows).items():
        texts = [np.flatnonzero(index == clip) for clip in clips]
        found = scores(np.concatenate(texts), np.array(clips))
        for place in range(2):
            column = np.split(found[:, place], [len(texts[0])])
            own, other = column[place][:, None], column[1 - place][None, :]
            values.append(float(np.mean((own > other) + 0.5 * (own == other))))
            names.append(pair)
    estimate = 100 * float(np.mean(values))
    pairs = len(set(names))
    low = high = None
    if pairs > 1:
        interval = bootstrap_mean(100 * np.asarray(values), names)
        low, high = interval.low, interval.high
    return ProbeResult(estimate, low, high, pairs, len(values))


def _pairs(rows: Manifest) -> dict[str, list[int]]:
    """Numbers of the items of each pair, in order."""
    found: dict[str, list[int]] = {}
    names = rows.table.column(PAIR).to_pylist()
    for name, item in zip(names, rows.item_index.tolist(), strict=True):
        clips = found.setdefault(str(name or ""), [])
        if item not in clips:
            clips.append(item)
    return found
