"""``docs/results/speed.md`` and its picture, from the JSON documents that `make bench` wrote.

A document has ``claims`` (see ``bench/_sides.claim``), a ``floor``, ``machine`` and ``command``;
that of growth has ``curves`` beside them. A bench without a document is named as not measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.search_results import machine

ROOT = Path(__file__).resolve().parent.parent
BENCHES = {
    "training": "Training",
    "embedding": "Embedding",
    "variants": "Adapter and runtimes",
    "metrics": "Metrics",
    "search": "Search",
    "search_million": "Search among a million",
    "growth": "Cost of growth",
    "startup": "Start-up",
}
"""Name of each bench and its title, in the order of the page."""
IN_SEARCH = ("search", "search_million")
"""Benches whose documents lie with the other results of searching."""
PICTURE = "growth.svg"
HEAD = """\
# Results: speed

Written by `python scripts/results.py --write` from what `make bench` measured; `make check`
compares. Every line is a ratio of two sides that ran in turn on the same inputs: the median of the
rounds' ratios, and in brackets the least and the greatest of them. The medians beside it are those
of the two sides, in the order named. A floor is what the machine allows: the bare matrix products,
or bytes over measured bandwidth.
"""

Document = Mapping[str, Any]


def documents(root: Path = ROOT) -> dict[str, Document]:
    """Name of a bench to its document, where there is one with claims."""
    results = root / "docs" / "results"
    found = {}
    for name in BENCHES:
        path = results / ("search" if name in IN_SEARCH else "speed") / f"{name}.json"
        if path.is_file():
            document = json.loads(path.read_text(encoding="utf-8"))
            if "claims" in document:
                found[name] = document
    return found


def target(claim: Document) -> str:
    """``≥ 8`` or ``≤ 1.25``; empty where nothing is promised."""
    bounds = {"at_least": "≥", "at_most": "≤"}
    words = [f"{bounds[name]} {value:g}" for name, value in claim["target"].items()]
    return ", ".join(words)


def verdict(claim: Document) -> str:
    """Met, or by how much it is missed: the share of a target reached, or its multiple."""
    if not claim["target"]:
        return ""
    if claim["met"]:
        return "met"
    ((bound, value),) = claim["target"].items()
    share = claim["ratio"] / value
    reached = f"{share:.0%} of the target" if bound == "at_least" else f"{share:.2f} x the target"
    return f"**missed**: {reached}"


def row(claim: Document) -> str:
    """One line of the table."""
    first, second = claim["medians"]
    low, high = claim["range"]
    names = " : ".join(claim["sides"])
    cells = [
        claim["claim"],
        target(claim),
        f"{claim['ratio']:g} [{low:g}, {high:g}]",
        f"{number(first)} : {number(second)} {claim['unit']} ({names})",
        verdict(claim),
        claim["note"],
    ]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def number(value: float) -> str:
    """Three or four figures, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(claims: list[Document]) -> str:
    """All claims of a document."""
    head = "| claim | target | ratio [range] | medians | | note |\n|---|---:|---:|---|---|---|\n"
    return head + "".join(row(claim) + "\n" for claim in claims)


def floors(document: Document) -> str:
    """What bounds the figures, in one sentence."""
    said = [f"{one['what']} {number(one['value'])} {one['unit']}" for one in document["floor"]]
    return f"Floor: {'; '.join(said)}.\n" if said else ""


def curves(document: Document) -> str:
    """How each cost grows."""
    sizes = ", ".join(f"{scale}x" for scale in document["scales"])
    text = (
        f"![Seconds over size, both axes logarithmic](speed/{PICTURE})\n\n"
        f"Sizes {sizes}. A slope of 1 is a cost in proportion to the size, below 1 a part of it is "
        "fixed. In brackets the 95 % interval of the slope of log seconds over log size.\n\n"
        "| what | size 1x | slope | seconds per size | why |\n|---|---|---:|---|---|\n"
    )
    for curve in document["curves"]:
        medians = ", ".join(number(value) for value in curve["seconds"])
        low, high = curve["interval"]
        cells = [
            curve["what"],
            curve["unit_size"],
            f"{curve['slope']:.2f} [{low:.2f}, {high:.2f}]",
            medians,
            curve["why"],
        ]
        text += "| " + " | ".join(cells) + " |\n"
    return text


def summary(found: Mapping[str, Document]) -> str:
    """How many claims with a target are met, missed, and which benches are missing."""
    claims = [c for document in found.values() for c in document["claims"] if c["target"]]
    met = sum(claim["met"] for claim in claims)
    missing = [title for name, title in BENCHES.items() if name not in found]
    text = f"Of {len(claims)} claims {met} are met and {len(claims) - met} missed."
    if missing:
        text += f" Not measured yet: {', '.join(missing)}."
    return text + "\n"


def page(found: Mapping[str, Document]) -> str:
    """The whole page."""
    text = f"{HEAD}\n{summary(found)}"
    for name, title in BENCHES.items():
        folder = "search" if name in IN_SEARCH else "speed"
        text += f"\n## {title}\n\n"
        if name not in found:
            text += (
                f"*Not measured yet: no claims in `docs/results/{folder}/{name}.json`. "
                f"`make bench ARGS={name}` makes it.*\n"
            )
            continue
        document = found[name]
        parts = [table(document["claims"])] if document["claims"] else []
        parts += [curves(document)] if "curves" in document else []
        parts += [floors(document), machine(document)]
        text += "\n".join(part for part in parts if part)
        text += f"`{document['command']}`, its document: [{name}.json]({folder}/{name}.json).\n"
    return text


def pages(root: Path = ROOT) -> dict[Path, str]:
    """The page, and the picture where growth was measured."""
    found = documents(root)
    results = root / "docs" / "results"
    files = {results / "speed.md": page(found)}
    if "growth" in found:
        from scripts.growth_picture import picture

        files[results / "speed" / PICTURE] = picture(found["growth"]["curves"])
    return files
