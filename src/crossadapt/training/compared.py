"""What a comparison asks of a result, be it of retrieval or of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossadapt.evaluation.classification import ClassificationResult, paired_accuracy
from crossadapt.evaluation.intervals import Interval, PairedTest, metric_intervals, paired_test
from crossadapt.evaluation.metrics import RetrievalResult
from crossadapt.evaluation.order_probe import ORDER_PROBE, ProbeResult

ZERO_SHOT = "zero-shot"
HEADLINE = "text_to_image.r1"
METRICS = (
    HEADLINE,
    "text_to_image.r5",
    "text_to_image.r10",
    "image_to_text.r1",
    "image_to_text.r5",
    "image_to_text.r10",
    "rsum",
)

Result = RetrievalResult | ClassificationResult


def result_of(record: Mapping[str, Any]) -> Result:
    """The result that a run stored."""
    if record.get("kind") == "classification":
        return ClassificationResult.from_dict(record)
    return RetrievalResult.from_dict(record)


def metrics_of(result: Result) -> tuple[str, ...]:
    """Names of the metrics that are compared, the headline first."""
    return METRICS if isinstance(result, RetrievalResult) else result.metrics


def interval_of(result: Result) -> Interval:
    """Bootstrap interval of the headline; of base-to-novel, of the accuracy over all pictures."""
    if isinstance(result, RetrievalResult):
        return metric_intervals(result, metrics=[HEADLINE])[HEADLINE]
    return result.interval()


def paired_of(before: Result, after: Result) -> PairedTest:
    """The paired test of the headline, or of the accuracy."""
    if isinstance(before, ClassificationResult) and isinstance(after, ClassificationResult):
        return paired_accuracy(before, after)
    if isinstance(before, RetrievalResult) and isinstance(after, RetrievalResult):
        return paired_test(before, after, HEADLINE)
    raise TypeError("before and after are results of different kinds")


def zero_shots(
    found: Mapping[tuple[str, int], Mapping[str, Any]],
) -> dict[str, tuple[Mapping[str, Any], str]]:
    """For each way in which the frozen model was measured, by the name of its row, one run and the
    key of the result in it: another similarity, another picture size."""
    by_head: dict[str, Mapping[str, Any]] = {}
    for part in found.values():
        by_head.setdefault(part["before"].get("similarity", "cosine"), part)
    names = {"cosine": "mean pooling"}
    rows = {}
    for head, part in by_head.items():
        label = ZERO_SHOT if len(by_head) == 1 else f"{ZERO_SHOT}, {names.get(head, head)}"
        rows[label] = part, "before"
        if part.get("before_resized") is not None:
            rows[f"{label}, resized"] = part, "before_resized"
    return rows


def probes(parts: Sequence[Mapping[str, Any]], when: str) -> dict[str, list[float]]:
    """The order probe as a metric, a value per run; nothing where there was none."""
    if any(part.get("order_probe") is None for part in parts):
        return {}
    return {ORDER_PROBE: [part["order_probe"][when]["accuracy"] for part in parts]}


def probe_note(label: str, parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The interval over pairs of the order probe in each run."""
    if any(part.get("order_probe") is None for part in parts):
        return []
    found = [ProbeResult.from_dict(part["order_probe"]["after"]) for part in parts]
    said = ", ".join(probe.format() for probe in found)
    return [f"{label}: order probe {said}, bootstrap over {found[0].pairs} pairs; chance is 50."]
