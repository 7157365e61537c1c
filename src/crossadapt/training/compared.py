"""What a comparison asks of a result, be it of retrieval or of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossadapt.evaluation.accuracy import ClassificationResult, paired_accuracy
from crossadapt.evaluation.intervals import Interval, PairedTest, metric_intervals, paired_test
from crossadapt.evaluation.metrics import RetrievalResult

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
