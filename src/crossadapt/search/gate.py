"""Building the index, measuring what it finds, and the facts about a collection."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossadapt.search.cache import folder_of
from crossadapt.search.card import Card, vector_column
from crossadapt.search.exact import top, unit
from crossadapt.search.snapshot import Snapshot
from crossadapt.search.store.protocol import StoredTable

QUERIES = 200
"""Queries the recall is measured with."""
PART_ROWS = 1024
"""Rows per part of an index."""
LEAST_PROBES = 2
"""Parts looked at however good the recall is: a query from a text lies farther out than these."""
DEPTH = 10
"""Recall is of the exact ten nearest."""


def maintain(
    table: StoredTable, card: Card, exact_limit: int, recall: float, keep_seconds: float
) -> dict[str, Any]:
    """Compact; above the exact limit build or extend the index of every view and measure it.

    Returns:
        The facts stored as ``card.facts["index"]``: kind, rows, wanted and lowest recall, and per
        view partitions, probes, recall, and whether the wanted recall was met.
    """
    table.compact(keep_seconds)
    rows = table.count()
    if rows <= exact_limit:
        return {"kind": "exact", "rows": rows, "recall": 1.0, "views": {}}
    known = card.facts.get("index", {}).get("views", {})
    snapshot = Snapshot(card, table, -1)
    views = {}
    for view in card.view_names:
        partitions = known.get(view, {}).get("partitions", 0)
        state = table.index(vector_column(view))
        right = partitions_for(rows)
        same = state is not None and state.kind == table.index_kind
        if not same or not right / 2 <= partitions <= right * 1.5:
            partitions = right
            table.build_index(vector_column(view), partitions)
        views[view] = measure(snapshot, view, partitions, recall)
    return {
        "kind": table.index_kind,
        "rows": rows,
        "target": recall,
        "recall": min(view["recall"] for view in views.values()),
        "queries": QUERIES,
        "views": views,
    }


def partitions_for(rows: int) -> int:
    """How many parts an index over that many rows is cut into."""
    return max(1, round(rows / PART_ROWS))


def sample_queries(snapshot: Snapshot, view: str, count: int) -> np.ndarray:
    """Queries (Q, D) made from rows spread over the collection, moved away from them.

    A query lies near the items it means but, coming from a text, not among them. Noise as long as
    the vector itself is added: a cosine of about 0.7 to the row.
    """
    step = max(1, snapshot.count // count)
    found, start = [], 0
    for block, _ in snapshot.blocks(view, 1.0, None):
        first = -start % step
        found.append(block.vectors[first::step])
        start += len(block.vectors)
    rows = unit(np.concatenate(found)[:count]) if found else np.empty((0, snapshot.card.dim))
    noise = np.random.default_rng(0).standard_normal(rows.shape, np.float32)
    return unit(rows + unit(noise))


def measure(snapshot: Snapshot, view: str, partitions: int, target: float) -> dict[str, Any]:
    """Raise the probes until the index finds `target` of the exact nearest, or all is probed."""
    queries = sample_queries(snapshot, view, QUERIES)
    if not len(queries):
        return {"partitions": partitions, "probes": 1, "recall": 1.0, "met": True}
    ids: list[np.ndarray] = []

    def parts() -> Any:
        for block, names in snapshot.blocks(view, 1.0, None):
            ids.append(names.to_numpy(zero_copy_only=False))
            yield block

    rows, _ = top(queries, parts(), DEPTH)
    names = np.concatenate(ids)
    wanted = [set(names[row]) for row in rows]
    probes = min(partitions, LEAST_PROBES)
    while True:
        recall = _recall(snapshot, view, queries, wanted, probes, partitions)
        if recall >= target or probes == partitions:
            break
        probes = min(partitions, -(-probes * 3 // 2))
    return {
        "partitions": partitions,
        "probes": probes,
        "recall": round(recall, 4),
        "met": recall >= target,
    }


def _recall(
    snapshot: Snapshot, view: str, queries: np.ndarray, wanted: list[set[str]], probes: int,
    partitions: int,
) -> float:  # fmt: skip
    answers = snapshot.nearest(view, queries, DEPTH, None, probes, partitions)
    shares = [
        len(expected.intersection(found)) / max(len(expected), 1)
        for (found, _), expected in zip(answers, wanted, strict=True)
    ]
    return float(np.mean(shares))


def stats(snapshot: Snapshot, uri: str, exact_limit: int) -> dict[str, Any]:
    """What `Collection.stats` returns."""
    card, table = snapshot.card, snapshot.table
    facts = snapshot.index
    indexed = unindexed = 0
    if facts.get("views"):
        state = table.index(vector_column(card.default_view))
        indexed, unindexed = (state.rows, state.unindexed) if state else (0, snapshot.count)
    used = bool(facts.get("views")) and not snapshot.small
    notes = []
    if not snapshot.small and not facts.get("views"):
        notes.append(
            f"over {exact_limit:,} rows and no index: every search reads all of them; "
            f"run crossadapt collection maintain {card.name}"
        )
    for name, view in facts.get("views", {}).items():
        if not view["met"]:
            notes.append(
                f"the index of view {name!r} finds {view['recall']:.1%} of the nearest with every "
                f"part probed, wanted {facts['target']:.1%}: ask for exact search where it matters"
            )
    if unindexed:
        notes.append(f"{unindexed:,} rows are not in the index yet: searched one by one, slower")
    return {
        "name": card.name,
        "uri": uri,
        "rows": snapshot.count,
        "dim": card.dim,
        "bytes": table.size(),
        "version": table.version,
        "format": card.format,
        "created": card.created,
        "backbone": card.backbone,
        "fingerprint": card.backbone_fingerprint,
        "precision": card.precision,
        "default_view": card.default_view,
        "views": [
            {"name": v.name, "fingerprint": v.fingerprint, "adapter": v.adapter,
             "method": v.method, "trained": v.trained}
            for v in card.views
        ],
        "attributes": dict(card.attributes),
        "index": facts["kind"] if used else "exact",
        "indexed_rows": indexed if used else snapshot.count,
        "unindexed_rows": unindexed if used else 0,
        "recall": facts["recall"] if used else 1.0,
        "index_views": facts.get("views", {}) if used else {},
        "ledger": card.facts.get("ledger", {}),
        "cached": folder_of(card, table.version).is_dir(),
        "notes": notes,
    }  # fmt: skip
