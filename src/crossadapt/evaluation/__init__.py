"""How good it is: ranks, metrics, protocols, intervals, tests, and the pages that show them.

Takes features and group names as tensors or arrays; knows neither models nor data readers, and
imports neither torch nor matplotlib until one is handed to it or asked for.
"""

from __future__ import annotations

from crossadapt.evaluation.charts import Curve
from crossadapt.evaluation.comparison import Comparison, ComparisonRow, write_comparison
from crossadapt.evaluation.examples import Example, Hit, retrieve_examples
from crossadapt.evaluation.intervals import (
    Interval,
    PairedTest,
    bootstrap_mean,
    metric_intervals,
    paired_test,
    paired_tests,
    seed_interval,
)
from crossadapt.evaluation.metrics import (
    METRIC_NAMES,
    TABLE_HEADER,
    DirectionMetrics,
    RetrievalResult,
    metric_label,
)
from crossadapt.evaluation.plots import require_matplotlib
from crossadapt.evaluation.postprocess import evaluate_postprocessed
from crossadapt.evaluation.protocols import (
    Protocol,
    evaluate,
    get_protocol,
    protocol_names,
    register_protocol,
)
from crossadapt.evaluation.ranks import Ranks, rank
from crossadapt.evaluation.report import Report, render_report, write_report
from crossadapt.evaluation.video_protocols import VIDEO_PROTOCOLS

__all__ = [
    "METRIC_NAMES",
    "TABLE_HEADER",
    "VIDEO_PROTOCOLS",
    "Comparison",
    "ComparisonRow",
    "Curve",
    "DirectionMetrics",
    "Example",
    "Hit",
    "Interval",
    "PairedTest",
    "Protocol",
    "Ranks",
    "Report",
    "RetrievalResult",
    "bootstrap_mean",
    "evaluate",
    "evaluate_postprocessed",
    "get_protocol",
    "metric_intervals",
    "metric_label",
    "paired_test",
    "paired_tests",
    "protocol_names",
    "rank",
    "register_protocol",
    "render_report",
    "require_matplotlib",
    "retrieve_examples",
    "seed_interval",
    "write_comparison",
    "write_report",
]
