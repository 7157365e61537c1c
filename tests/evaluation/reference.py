"""The definitions of rank and metrics, spelled out with loops over the full score matrix."""

from __future__ import annotations

import math

import numpy as np


def ranks(scores, query_groups, gallery_groups):
    """(optimistic, pessimistic) from a full (Q, M) score matrix, one comparison at a time."""
    low, high = [], []
    for q, group in enumerate(query_groups):
        own = [j for j, g in enumerate(gallery_groups) if g == group]
        best = max(scores[q][j] for j in own)
        others = [scores[q][j] for j in range(len(gallery_groups)) if j not in own]
        low.append(1 + sum(s > best for s in others))
        high.append(1 + sum(s >= best for s in others))
    return low, high


def minimum_over_own(scores, query_groups, gallery_groups):
    """The published image-to-text rule: least rank of an own caption among all captions."""
    found = []
    for q, group in enumerate(query_groups):
        line = scores[q]
        own = [j for j, g in enumerate(gallery_groups) if g == group]
        found.append(min(1 + sum(s > line[j] for s in line) for j in own))
    return found


def cosine(queries, gallery):
    def unit(rows):
        return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows]

    return np.array(unit(queries)) @ np.array(unit(gallery)).T
