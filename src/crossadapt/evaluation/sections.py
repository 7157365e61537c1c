"""The parts of the report page, each a function from plain data to markup or None."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from crossadapt.evaluation.charts import Curve, Span, interval_chart, line_chart
from crossadapt.evaluation.html import Markup, details, join, section, table, tag
from crossadapt.evaluation.intervals import MEAN_METRICS, PairedTest, metric_intervals, paired_tests
from crossadapt.evaluation.metrics import (
    DIRECTIONS,
    METRIC_NAMES,
    RetrievalResult,
    direction_label,
    metric_label,
)
from crossadapt.evaluation.protocols import get_protocol

LEDGER_ROWS = 200


def _testable(*results: RetrievalResult | None) -> bool:
    return all(r is not None and r.details is not None and r.groups > 1 for r in results)


def _p(value: float) -> str:
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _points(metric: str) -> str:
    return "places" if metric.endswith("rank") else "points"


def headline(
    before: RetrievalResult | None,
    after: RetrievalResult | None,
    names: tuple[str, str],
    metric: str,
    facts: Mapping[str, Any],
) -> Markup | None:
    """The number to remember, what it means, and the facts beside it."""
    cards = []
    if after is not None:
        now = after.metric(metric)
        score: list[Markup | str] = []
        if before is not None:
            score = [
                tag("span", f"{before.metric(metric):.1f}", class_="was"),
                tag("span", "→", class_="arrow", aria_label="to"),
            ]
        score.append(tag("span", f"{now:.1f}", class_="now"))
        cards.append(
            tag(
                "div",
                tag(
                    "p",
                    f"{metric_label(metric)}, protocol {after.protocol}",
                    class_="what",
                ),
                tag("p", join(*(join(s, " ") for s in score)), class_="score"),
                _verdict(before, after, names, metric),
                class_="card",
            )
        )
    if facts:
        cells = [tag("div", tag("dt", k), tag("dd", _text(v))) for k, v in facts.items()]
        cards.append(tag("dl", cells, class_="card facts"))
    return tag("div", cards, class_="hero") if cards else None


def _verdict(
    before: RetrievalResult | None,
    after: RetrievalResult,
    names: tuple[str, str],
    metric: str,
) -> Markup | None:
    if before is None or metric not in MEAN_METRICS or not _testable(before, after):
        return None
    test = paired_tests(before, after, metrics=[metric])[metric]
    better = test.difference < 0 if metric.endswith("rank") else test.difference > 0
    clear = test.low > 0 or test.high < 0
    mood, words = "", "is not clearly different from"
    if clear:
        mood, words = (
            ("good", "is clearly better than") if better else ("bad", "is clearly worse than")
        )
    unit = _points(metric)
    return join(
        tag("span", f"{_signed(test.difference)} {unit}", class_=f"pill {mood}".strip()),
        tag(
            "p",
            f"{names[1]} {words} {names[0]} on the same {test.groups:,} groups of queries: "
            f"95 % interval of the difference {_signed(test.low)} to {_signed(test.high)} {unit}, "
            f"{_p(test.p_value)} (paired permutation test).",
            class_="verdict",
        ),
    )


def metrics(
    before: RetrievalResult | None, after: RetrievalResult | None, names: tuple[str, str]
) -> Markup | None:
    """The interval chart, the full table, and how far ties matter."""
    if after is None:
        return None
    results = [r for r in (before, after) if r is not None]
    shown = names if before is not None else (names[1],)
    found = [metric_intervals(r) if _testable(r) else {} for r in results]
    tests = paired_tests(before, after) if before and _testable(before, after) else {}
    spans, rows = [], []
    for metric in METRIC_NAMES:
        values = [r.metric(metric) for r in results]
        bounds = [(i[metric].low, i[metric].high) if metric in i else (None, None) for i in found]
        if metric.rsplit(".")[-1] in ("r1", "r5", "r10"):
            pairs = [(v, low, high) for v, (low, high) in zip(values, bounds, strict=True)]
            spans.append(Span(metric_label(metric), pairs[0] if before else None, pairs[-1]))
        cells: list[Markup | str] = [metric_label(metric)]
        for i, (value, (low, high)) in enumerate(zip(values, bounds, strict=True)):
            number = tag("b", f"{value:.1f}") if i == len(values) - 1 else f"{value:.1f}"
            cells.append(join(number, _range(low, high)))
        if tests:
            cells += _difference(metric, values, tests)
        rows.append(cells)
    header = ["Metric", *shown, *(["Difference", "Paired test"] if tests else [])]
    if all(found):
        lead = (
            "Brackets are 95 % bootstrap intervals over groups of queries. R is recall in "
            "percent, MdR and MnR are median and mean rank (1 is best), RSum adds the six "
            "recalls."
        )
    else:
        lead = "No intervals: they need the rank of every query and at least two groups."
    return section(
        "Results",
        interval_chart("Recall with 95 % intervals", spans, names),
        table(header, rows, caption=_sizes(after)),
        _ties(results, shown),
        lead=lead,
    )


def _difference(
    metric: str, values: Sequence[float], tests: Mapping[str, PairedTest]
) -> list[Markup | str]:
    if metric not in tests:
        return [_signed(values[-1] - values[0]), "—"]
    t = tests[metric]
    better = t.difference < 0 if metric.endswith("rank") else t.difference > 0
    mood = ("good" if better else "bad") if t.low > 0 or t.high < 0 else None
    number = tag("span", _signed(t.difference), class_=mood)
    return [join(number, tag("small", f"[{_signed(t.low)}, {_signed(t.high)}]")), _p(t.p_value)]


def _range(low: float | None, high: float | None) -> Markup | None:
    if low is None or high is None:
        return None
    return tag("small", f"[{low:.1f}, {high:.1f}]")


def _sizes(r: RetrievalResult) -> str:
    folds = f", mean over {r.folds} folds" if r.folds > 1 else ""
    return (
        f"Protocol {r.protocol}: {r.images:,} images, {r.texts:,} texts, {r.groups:,} groups"
        f"{folds}, {r.similarity} similarity."
    )


def _ties(results: Sequence[RetrievalResult], names: Sequence[str]) -> Markup:
    rows = []
    for name, r in zip(names, results, strict=True):
        for direction in DIRECTIONS:
            d = getattr(r, direction)
            recall = ((d.r1, d.r5, d.r10), d.optimistic, d.pessimistic)
            rows.append(
                [
                    f"{name}, {direction_label(direction).lower()}",
                    *(" / ".join(f"{v:.1f}" for v in triple) for triple in recall),
                ]
            )
    most = max(getattr(r, d).tie_sensitivity for r in results for d in DIRECTIONS)
    words = f"recalls move by up to {most:.1f} points" if most else "no recall depends on them"
    return details(
        f"Ties: {words}",
        table(
            ["R@1 / R@5 / R@10", "Average rank (reported)", "Ties won", "Ties lost"],
            rows,
            caption="An equal score is neither won nor lost: the reported rank is the middle one.",
        ),
    )


def curves(items: Sequence[Curve]) -> Markup | None:
    """Training curves."""
    if not items:
        return None
    return section("Training", tag("div", [line_chart(c) for c in items], class_="charts"))


def ledger(entries: Sequence[Mapping[str, Any]] | None) -> Markup | None:
    """Inputs that were left out, with reasons."""
    if entries is None:
        return None
    if not entries:
        return section("Ledger", lead="Every input could be read and used.")
    counts = Counter(_text(e.get("reason", "")) for e in entries).most_common()
    rows = [
        [_text(e.get(k, "")) for k in ("item", "reason", "stage")] for e in entries[:LEDGER_ROWS]
    ]
    more = len(entries) - len(rows)
    caption = f"The first {len(rows):,}; {more:,} more are in the ledger file." if more else "All."
    return section(
        "Ledger",
        table(["Reason", "Items"], [[r, f"{n:,}"] for r, n in counts], caption="Reasons"),
        details("Items", table(["Item", "Reason", "Stage"], rows, caption=caption, class_="plain")),
        lead=f"{len(entries):,} inputs were left out.",
    )


def leakage(found: Mapping[str, Any] | None) -> Markup | None:
    """Duplicates and overlaps between splits."""
    if found is None:
        return None
    return section("Leakage between splits", _mapping("What was compared and found", found))


def protocol(result: RetrievalResult | None) -> Markup | None:
    """What exactly was measured."""
    if result is None:
        return None
    rule = get_protocol(result.protocol)
    return section(
        "Protocol",
        tag("p", tag("code", rule.name), " — ", rule.definition),
        tag(
            "p",
            "Ranks start at 1; R@K is the share of queries whose rank is at most K "
            "and equal scores share the middle rank. No post-processing of scores.",
        ),
    )


def settings(config: Mapping[str, Any], versions: Mapping[str, Any]) -> Markup | None:
    """Resolved configuration and versions."""
    parts = [
        details(title, _mapping(title, values))
        for title, values in (("Configuration", config), ("Versions", versions))
        if values
    ]
    return section("To repeat this run", parts) if parts else None


def _mapping(caption: str, values: Mapping[str, Any]) -> Markup:
    rows = [[tag("code", key), value] for key, value in _flatten(values)]
    return table(["Key", "Value"], rows, caption=caption, class_="plain")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "—"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
