"""What gives labels to vectors: a few-shot adapter, or Tip-Adapter on stored vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.errors import UserError
from crossadapt.search.card import FROZEN
from crossadapt.search.label_examples import example_vectors, read_examples
from crossadapt.search.opened import Collection

if TYPE_CHECKING:
    from torch import Tensor

START = (1.17, 1.0)
"""Alpha and beta when there are too few examples to search them."""
SEARCH = (7.0, 3.0)
"""Upper ends of the search of beta and alpha over the examples."""


@dataclass(frozen=True)
class Judge:
    """Gives logits (B, N) for vectors (B, D); `classes` are the N names."""

    classes: tuple[str, ...]
    logits: Any
    alpha: float
    beta: float
    held_out: float | None
    method: str


def by_adapter(collection: Collection, folder: Path) -> Judge:
    """The classifier of an adapter folder; its backbone must be the collection's."""
    import torch

    from crossadapt.adapters.attach import frozen
    from crossadapt.adapters.classifier import class_companion, class_logits
    from crossadapt.adapters.folder import load_adapter
    from crossadapt.adapters.reading import read_adapter_config
    from crossadapt.adapters.registry import get_method
    from crossadapt.search.opening import open_embedder

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

    return Judge(judge.classes, logits, judge.alpha, judge.beta, None, saved["method"])


def by_examples(collection: Collection, path: Path, view: str, templates: Sequence[str]) -> Judge:
    """Tip-Adapter on the stored vectors of the examples; without templates by pictures only."""
    import torch

    from crossadapt.layers.class_cache import SCALE
    from crossadapt.layers.feature_cache import affinity

    given = read_examples(path)
    vectors, names = example_vectors(collection, given, view, str(path))
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise UserError(
            f"the examples name {len(classes)} class: nothing to tell apart",
            where=str(path),
            fix="add examples of another class; 'other' will do",
        )
    labels = torch.tensor([classes.index(name) for name in names])
    keys = torch.from_numpy(vectors)
    counts = torch.bincount(labels, minlength=len(classes))
    # One-hot labels; with unequal counts a class counts as if it had the mean number.
    values = torch.nn.functional.one_hot(labels, len(classes)).float()
    values *= counts.float().mean() / counts
    text = torch.zeros(len(classes), keys.shape[1])
    if templates:
        text = _class_texts(collection, classes, templates, view)

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

    return Judge(classes, logits, alpha, beta, held_out, "tip-adapter")


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
