"""Measuring a run of the task `multimodal`: the linear probe, the trained model, and what each of
its modalities is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from crossadapt.adapters.attach import frozen
from crossadapt.evaluation.classification import ClassificationResult, paired_accuracy
from crossadapt.tasks.multimodal import MultimodalTask

if TYPE_CHECKING:
    from crossadapt.backbones.hf import HFBackbone
    from crossadapt.evaluation.metrics import RetrievalResult
    from crossadapt.training.splits import Split

MULTIMODAL_TASK = "multimodal"


@dataclass(frozen=True)
class Classified:
    """One model on the held-out split. `probe` is for the order probe, which has no place here."""

    result: ClassificationResult
    probe: None = None


def classify(
    task: MultimodalTask, backbone: HFBackbone, held_out: Split
) -> tuple[Classified, Classified, dict[str, Any]]:
    """The linear probe and the trained model on a split.

    Returns:
        The linear probe with the same modalities, the trained model, and for the record: the
        paired test, and the accuracy of both for every subset of the modalities. The probe is
        fitted to each subset; the trained model is the same throughout and goes without.
    """
    examples = task.examples(backbone, held_out.manifest, held_out.pixels)
    subsets: dict[str, dict[str, float]] = {}
    probe = trained = None
    for names in _subsets(tuple(task.sources)):
        with frozen(backbone):
            probe = task.measure(backbone, examples, names)
        trained = task.measure(backbone, examples, names)
        key = "+".join(("vision", *names))
        subsets[key] = {"linear_probe": probe.accuracy, "trained": trained.accuracy}
    # The last subset holds all modalities.
    if probe is None or trained is None:
        raise RuntimeError("there is always the subset without modalities")
    before, after = Classified(probe), Classified(trained)
    paired = paired_accuracy(probe, trained).to_dict() if len(set(probe.groups)) > 1 else None
    return before, after, {"paired": paired, "subsets": subsets}


def _subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All subsets, the empty one first, everything last."""
    for size in range(len(names) + 1):
        yield from combinations(names, size)


def details(result: RetrievalResult | ClassificationResult) -> dict[str, Any]:
    """A result with what is known of every single query, as plain JSON types."""
    if isinstance(result, ClassificationResult):
        return result.to_dict(answers=True)
    return result.to_dict(ranks=True)
