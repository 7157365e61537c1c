"""Labels from a few examples: an attribute of a collection, from the vectors it has.

Two ways. From examples in the collection, by Tip-Adapter (Zhang et al., arXiv 2111.03930): the
stored vectors of the examples are the cache, the names of the classes the zero-shot part. Or by an
adapter that `crossadapt train --task few-shot` made. Nothing is embedded again but class names.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crossadapt.errors import UserError, did_you_mean
from crossadapt.search.cache import matrix
from crossadapt.search.card import FILTERABLE, FROZEN, Card, attribute_column, vector_column
from crossadapt.search.collection import Collections
from crossadapt.search.opened import Collection

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 8192
"""Rows scored and written at a time."""
LABELS = "labels"
"""Where a card says which attributes were made by labelling, and how."""
SCORE = "_score"
START = (1.17, 1.0)
"""Alpha and beta when there are too few examples to search them."""
SEARCH = (7.0, 3.0)
"""Upper ends of the search of beta and alpha over the examples."""


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


@dataclass(frozen=True)
class _Judge:
    """Gives logits (B, N) for vectors (B, D); `classes` are the N names."""

    classes: tuple[str, ...]
    logits: Any
    alpha: float
    beta: float
    held_out: float | None
    method: str


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
        judge = _by_adapter(collection, job) if job.adapter else _by_examples(collection, job, view)
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


def _by_adapter(collection: Collection, job: LabelJob) -> _Judge:
    """The classifier of an adapter folder; its backbone must be the collection's."""
    import torch

    from crossadapt.adapters.attach import frozen
    from crossadapt.adapters.classifier import class_companion, class_logits
    from crossadapt.adapters.folder import load_adapter
    from crossadapt.adapters.reading import read_adapter_config
    from crossadapt.adapters.registry import get_method
    from crossadapt.search.opening import open_embedder

    folder = Path(str(job.adapter))
    saved = read_adapter_config(folder)
    if not get_method(saved["method"]).few_shot:
        raise UserError(
            f"a {saved['method']} adapter knows no classes",
            where=str(folder),
            fix="make one with crossadapt train --task few-shot --method tip-adapter",
        )
    theirs, ours = saved["backbone"]["fingerprint"], collection.card.backbone_fingerprint
    if theirs != ours:
        raise UserError(
            f"the adapter was made for another model: {saved['backbone']['source']} "
            f"({theirs[:12]}), the collection has vectors of {collection.card.backbone} "
            f"({ours[:12]})",
            where=str(folder),
            fix="index with that model, or train an adapter for the collection's",
        )
    backbone = open_embedder(collection, [FROZEN]).backbone
    with frozen(backbone):
        adapter = load_adapter(backbone, folder, name="labelling")
        judge = class_companion(backbone)
    if judge is None:
        raise RuntimeError("the adapter has no classes")
    device = next(p for p in adapter.companion.parameters()).device  # type: ignore[union-attr]

    def logits(vectors: np.ndarray) -> Tensor:
        return class_logits(judge, torch.from_numpy(vectors).to(device), adapter.strength)

    return _Judge(judge.classes, logits, judge.alpha, judge.beta, None, saved["method"])


def _by_examples(collection: Collection, job: LabelJob, view: str) -> _Judge:
    """Tip-Adapter on the stored vectors of the examples."""
    import torch

    from crossadapt.layers.class_cache import SCALE
    from crossadapt.layers.feature_cache import affinity

    given = read_examples(Path(str(job.examples)))
    vectors, names = _example_vectors(collection, given, view, str(job.examples))
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise UserError(
            f"the examples name {len(classes)} class: nothing to tell apart",
            where=str(job.examples),
            fix="add examples of another class; 'other' will do",
        )
    labels = torch.tensor([classes.index(name) for name in names])
    keys = torch.from_numpy(vectors)
    counts = torch.bincount(labels, minlength=len(classes))
    # One-hot labels; with unequal counts a class counts as if it had the mean number.
    values = torch.nn.functional.one_hot(labels, len(classes)).float()
    values *= counts.float().mean() / counts
    text = torch.zeros(len(classes), keys.shape[1])
    if job.text:
        text = _class_texts(collection, classes, job.templates, view)

    def scores(images: Tensor, alpha: float, beta: float, without: Tensor | None = None) -> Tensor:
        near = affinity(images @ keys.T, beta)
        if without is not None:
            near = near.masked_fill(without, 0.0)
        return SCALE * images @ text.T + alpha * near @ values

    alpha, beta, held_out = START[0], START[1], None
    if int(counts.min()) > 1:
        alpha, beta, held_out = _leave_one_out(keys, labels, scores)

    def logits(block: np.ndarray) -> Tensor:
        return scores(torch.from_numpy(block), alpha, beta)

    return _Judge(classes, logits, alpha, beta, held_out, "tip-adapter")


def _leave_one_out(keys: Tensor, labels: Tensor, scores: Any) -> tuple[float, float, float]:
    """The published grid of alpha and beta, judged on the examples without themselves."""
    import torch

    from crossadapt.layers.feature_cache import ALPHA_STEPS, BETA_STEPS, grid

    best = (START[0], START[1], -1.0)
    itself = torch.eye(len(keys), dtype=torch.bool)
    for beta in grid(SEARCH[0], BETA_STEPS).tolist():
        plain, cached = scores(keys, 0.0, beta, itself), scores(keys, 1.0, beta, itself)
        for alpha in grid(SEARCH[1], ALPHA_STEPS).tolist():
            logits = plain + alpha * (cached - plain)
            right = 100.0 * float((logits.argmax(dim=1) == labels).double().mean())
            if right > best[2]:
                best = (alpha, beta, right)
    return best


def _class_texts(
    collection: Collection, classes: Sequence[str], templates: Sequence[str], view: str
) -> Tensor:
    import torch

    from crossadapt.data.class_sets import spoken
    from crossadapt.search import opening

    for template in templates:
        if "{}" not in template:
            raise UserError(f"{template!r} has no {{}}", where="--templates", fix="write {} in it")
    embedder = opening.open_embedder(collection, [view])
    texts = [t.replace("{}", spoken(name)) for t in templates for name in classes]
    found = torch.from_numpy(embedder.texts(texts, view)).view(len(templates), len(classes), -1)
    return torch.nn.functional.normalize(found.mean(dim=0), dim=-1)


def read_examples(path: Path) -> list[tuple[str, str]]:
    """(id or item, label) of each line of a CSV, TSV or JSONL file with columns id or item, label.

    Raises:
        UserError: no such file, a missing column, an empty cell, or an item with two labels.
    """
    found: dict[str, str] = {}
    for number, row in enumerate(_rows(path), 1):
        key = next((str(row[c]).strip() for c in ("id", "item") if row.get(c)), "")
        label = str(row.get("label") or "").strip()
        if not key or not label:
            raise UserError(
                "a line without id (or item) and label",
                where=f"{path}, entry {number}; columns: {', '.join(map(str, row))}",
                fix="write a header with id,label or item,label, and fill both in",
            )
        if found.setdefault(key, label) != label:
            raise UserError(
                f"{key} is both {found[key]!r} and {label!r}", where=str(path), fix="keep one"
            )
    if not found:
        raise UserError("no example", where=str(path), fix="write a line for each example")
    return list(found.items())


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the examples: {error}", where=str(path)) from error
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"not JSON: {error}", where=f"{path}:{number}") from error
            if not isinstance(row, dict):
                raise UserError("not a JSON object", where=f"{path}:{number}")
            yield row
        return
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    yield from csv.DictReader(text.splitlines(), delimiter=delimiter)


def _example_vectors(
    collection: Collection, given: Sequence[tuple[str, str]], view: str, where: str
) -> tuple[np.ndarray, list[str]]:
    """Stored vectors (R, D) of the examples, and their labels, in the file's order."""
    wanted = dict(given)
    absolute = {str(Path(key).absolute()): key for key in wanted}
    column = vector_column(view)
    found: dict[str, np.ndarray] = {}
    names: list[str] = []
    for batch in collection.scan(["id", "item", column]):
        ids, items = batch.column("id").to_pylist(), batch.column("item").to_pylist()
        names += items[: max(0, 1000 - len(names))]
        rows: dict[str, int] = {}
        for row, (id, item) in enumerate(zip(ids, items, strict=True)):
            for key in (id, item, absolute.get(item or "")):
                if key in wanted:
                    rows[key] = row
        if rows:
            vectors, nulls = matrix(batch.column(column), collection.card.dim)
            missing = set(nulls)
            found |= {key: vectors[row] for key, row in rows.items() if row not in missing}
    lost = [key for key in wanted if key not in found]
    if lost:
        raise UserError(
            f"{len(lost)} examples are not in the collection, the first is {lost[0]}",
            where=where,
            fix=f"{did_you_mean(lost[0], names)} Ids are in the output of search --json.",
        )
    return np.stack([found[key] for key in wanted]).astype(np.float32), list(wanted.values())


def _write(collection: Collection, job: LabelJob, view: str, judge: _Judge) -> LabelReport:
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
    collection: Collection, job: LabelJob, column: str, judge: _Judge
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
