"""``crossadapt plan``: what a method would insert where, and how much it would train."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crossadapt.cli.options import DEFAULT_METHOD, parse_with_method
from crossadapt.cli.output import json_only, table

if TYPE_CHECKING:
    from crossadapt.adapters.summary import PlanSummary, SiteSummary


@dataclass(frozen=True)
class PlanOptions:
    """Show what a method would insert where and how much it would train; nothing is trained.

    No weights are read, so any architecture is counted within seconds.
    """

    backbone: str = "pico-clip"
    """Directory, hub id, pico-clip, or config:NAME for an architecture without its weights."""
    method: str = DEFAULT_METHOD
    """The method; its own options are --method.NAME."""
    json: bool = False
    """Print one JSON document instead of the tables."""


def parse(args: Sequence[str]) -> tuple[PlanOptions, Any] | None:
    """Options and the method's config, or None when help was printed."""
    return parse_with_method(PlanOptions, args, "plan")


def run(parsed: tuple[PlanOptions, Any]) -> int:
    """Count and print."""
    options, config = parsed
    from crossadapt.adapters.summary import summarise
    from crossadapt.backbones import load

    with json_only(options.json) as show:
        summary = summarise(load(options.backbone, weights=False), config)
        show(summary.to_dict())
        if not options.json:
            _print(summary)
    return 0


def _print(summary: PlanSummary) -> None:
    # Places that differ only in their layer number are one row: a full plan has hundreds.
    alike: dict[tuple[str, str], list[SiteSummary]] = {}
    for site in summary.sites:
        alike.setdefault((re.sub(r"\b\d+\b", "*", site.name), site.tower), []).append(site)
    rows = [
        [
            where,
            tower,
            str(len(sites)),
            f"{sum(s.trainable for s in sites):,}",
            f"{sum(s.shared for s in sites):,}",
        ]
        for (where, tower), sites in alike.items()
    ]
    table(
        f"{summary.method} on {summary.backbone}",
        ["where", "tower", "places", "own", "shared with others"],
        rows,
    )
    towers = [[name, f"{count:,}"] for name, count in summary.per_tower.items()]
    table("trained parameters", ["tower", "parameters"], towers)
    print(f"{summary.trainable:,} trained of {summary.total:,} parameters: {summary.share:.2%}")
