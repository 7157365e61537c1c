"""Labels from a few examples: an attribute of a collection, from the vectors it has.

Two ways. From examples in the collection, by Tip-Adapter (Zhang et al., arXiv 2111.03930): the
stored vectors of the examples are the cache, the names of the classes the zero-shot part. Or by an
adapter that `crossadapt train --task few-shot` made. Nothing is embedded again but class names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crossadapt.errors import UserError
from crossadapt.search.cache import matrix
from crossadapt.search.card import FILTERABLE, FROZEN, Card, attribute_column, vector_column
from crossadapt.search.collection import Collections
from crossadapt.search.label_judges import Judge, by_adapter, by_examples
from crossadapt.search.opened import Collection

CHUNK = 8192
"""Rows scored and written at a time."""
LABELS = "labels"
"""Where a card says which attributes were made by labelling, and how."""
SCORE = "_score"


@dataclass(frozen=True)
class LabelJob:
    """What `crossadapt label` is asked for; see the options of the command."""

    collection: str
    name: str = "label"
    examples: Path | None = None
    adapter: Path | None = None
    view: str | None = None
    text: bool = True
    templates: tuple[str, ...] = ("a photo of a {}.",)
    filter: str = ""
    least: float = 0.0
    overwrite: bool = False
    store: str | None = None
    wait: float = 10.0


@dataclass(frozen=True)
class LabelReport:
    """What was written: rows, how many of each class, and how the examples themselves fared.

    `found` counts the rows that got each label; `unsure` those that got none because of the least
    score. `held_out` is the accuracy in percent on the examples, each left out of the cache in
    turn; None where a class has a single example, or for an adapter.
    """

    collection: str
    name: str
    rows: int
    found: dict[str, int]
    unsure: int
    alpha: float
    beta: float
    held_out: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(vars(self))


def label_collection(job: LabelJob) -> LabelReport:
    """Write the attributes NAME (the class) and NAME_score (its probability).

    Holds the writer's lock; every chunk of rows is written whole or not at all. Rows that a filter
    leaves out keep what they have.

    Raises:
        UserError: no or two sources of labels, a name that is taken, an example that is not in the
            collection, fewer than two classes, another model than the collection's, or a disk that
            is full.
    """
    if (job.examples is None) == (job.adapter is None):
        raise UserError(
            "labels come from examples or from an adapter",
            where="--examples, --adapter",
            fix="give one of the two",
        )
    if not 0 <= job.least <= 1:
        raise UserError(f"--least is {job.least}", where="--least", fix="give a score in [0, 1]")
    with Collections(job.store, wait=job.wait).open(job.collection, write=True) as collection:
        _check_name(collection.card, job)
        view = _view(collection.card, job)
        if job.examples is not None:
            templates = job.templates if job.text else ()
            judge = by_examples(collection, job.examples, view, templates)
        else:
            judge = by_adapter(collection, Path(str(job.adapter)))
        return _write(collection, job, view, judge)


def labelled_columns(card: Card) -> set[str]:
    """Attributes that labelling made, which the sources of a collection know nothing about."""
    made = card.facts.get(LABELS, {})
    return {column for name in made for column in (name, name + SCORE)}


def _check_name(card: Card, job: LabelJob) -> None:
    for name in (job.name, job.name + SCORE):
        if name in ("id", *FILTERABLE):
            raise UserError(
                f"{name!r} is a column of every collection", where="--name", fix="take another name"
            )
        if name in card.attributes and name not in labelled_columns(card):
            raise UserError(
                f"the collection has an attribute {name!r} from its source",
                where="--name",
                fix="take another name",
            )
        if name in card.attributes and not job.overwrite:
            raise UserError(
                f"the collection has labels {name!r} already",
                where="--name",
                fix="take another name, or give --overwrite",
            )


def _view(card: Card, job: LabelJob) -> str:
    """The vectors to look at: an adapter of the task few-shot needs those of the frozen model."""
    if job.adapter is None:
        return card.view(job.view).name
    if FROZEN not in card.view_names or (job.view or FROZEN) != FROZEN:
        raise UserError(
            "a few-shot adapter works on vectors of the frozen model",
            where=f"views: {', '.join(card.view_names)}",
            fix="leave --view out, and embed with the frozen model: crossadapt index --frozen",
        )
    return FROZEN


def _write(collection: Collection, job: LabelJob, view: str, judge: Judge) -> LabelReport:
    card, score = collection.card, job.name + SCORE
    column = vector_column(view)
    facts = {
        "method": judge.method,
        "classes": list(judge.classes),
        "view": view,
        "fingerprint": card.view(view).fingerprint,
        "alpha": judge.alpha,
        "beta": judge.beta,
        "least": job.least,
        "filter": job.filter,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # Scored before anything is written: whatever can be refused is refused with the card as it was.
    scored = list(_scored(collection, job, column, judge))
    collection.update_card(
        attributes={**card.attributes, job.name: "string", score: "float"},
        facts={**card.facts, LABELS: {**card.facts.get(LABELS, {}), job.name: facts}},
    )
    found, unsure, count = dict.fromkeys(judge.classes, 0), 0, 0
    for ids, labels, probabilities in scored:
        rows = {
            "id": pa.array(ids),
            attribute_column(job.name): pa.array(labels, pa.string()),
            attribute_column(score): pa.array(probabilities, pa.float64()),
        }
        collection.upsert(pa.table(rows))
        count += len(ids)
        for label in labels:
            if label is None:
                unsure += 1
            else:
                found[label] += 1
    return LabelReport(
        card.name, job.name, count, found, unsure, judge.alpha, judge.beta, judge.held_out
    )


def _scored(
    collection: Collection, job: LabelJob, column: str, judge: Judge
) -> Iterator[tuple[list[str], list[str | None], list[float]]]:
    """Ids, labels (None below the least score) and probabilities of rows that have a vector."""
    for whole in collection.scan(["id", column], job.filter):
        for start in range(0, len(whole), CHUNK):
            batch = whole.slice(start, CHUNK)
            vectors, nulls = matrix(batch.column(column), collection.card.dim)
            kept = np.setdiff1d(np.arange(len(batch)), nulls)
            if not len(kept):
                continue
            probabilities = judge.logits(np.ascontiguousarray(vectors[kept])).softmax(dim=1)
            best, at = probabilities.max(dim=1)
            ids = batch.column("id").to_pylist()
            yield (
                [ids[row] for row in kept],
                [
                    judge.classes[number] if value >= job.least else None
                    for value, number in zip(best.tolist(), at.tolist(), strict=True)
                ],
                best.tolist(),
            )
