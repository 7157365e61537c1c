"""Write the pages that show measured numbers, from the committed JSON of comparisons.

- ``docs/results/retrieval.md`` is written whole;
- in ``docs/which-method.md`` the parts between ``<!-- measured: … -->`` and ``<!-- end -->`` are.

The JSON is what ``crossadapt compare --suite retrieval`` writes as ``PART/comparison.json``. It may
come in several documents of the same data, backbone and settings: the comparison that stands in
`EARLIER`, and those in ``docs/results/retrieval/PART/``. What training costs comes from a run of
its own, ``PART-costs.json``: the same suite with one epoch, one process after another on one
machine. A number on these pages comes from there or is not there.

`results.py` writes and checks them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossadapt.training.suites import read_suite

ROOT = Path(__file__).resolve().parent.parent
SUITE = "retrieval"
PARTS = {"openmoji": "Pictures: OpenMoji", "clips": "Videos: generated clips"}
EARLIER = {"openmoji": "openmoji", "clips": "clips"}
"""Folder of docs/results with the comparison whose rows are shared."""
PROBE, CHANCE = "order_probe", 50.0
COLUMNS = {
    "text_to_image.r1": "text → item R@1",
    "text_to_image.r10": "R@10",
    "image_to_text.r1": "item → text R@1",
    PROBE: "order probe",
}
GUESS = "†"
NO_COSTS = "no costs measured yet"
HEAD = """\
# Retrieval methods side by side

Written by `python scripts/results.py --write` from the JSON files beside it; `make check`
compares. Nothing here is typed by hand and nothing is copied from a paper.
[Which method](../which-method.md) says what follows for a choice.

```bash
crossadapt data clips --output clips
crossadapt compare --suite retrieval --output runs/retrieval
crossadapt compare --suite retrieval --output runs/costs --epochs 1   # for the last two columns
```

Every method trains with each seed in a process of its own, on the training split; the checkpoint
is chosen on the validation split; the numbers are those of the held-out split. Share is trained
parameters over those of the backbone. Seconds are those of one epoch with its two validations, MiB
the peak memory of the process, both with one thread on one machine, where a run may have had others
beside it: they compare the methods of one table, roughly.
"""

Record = Mapping[str, Any]


def records(root: Path = ROOT) -> dict[str, Record | None]:
    """The comparison of each part, with its costs; None where there is none yet."""
    folder = root / "docs" / "results"
    found: dict[str, Record | None] = {}
    for part, earlier in EARLIER.items():
        files = [
            folder / earlier / "comparison.json",
            *sorted((folder / SUITE / part).glob("*.json")),
        ]
        documents = [record for file in files if (record := _read(file)) is not None]
        if not documents:
            found[part] = None
            continue
        record = priced(joined(documents), _read(folder / SUITE / f"{part}-costs.json"))
        found[part] = planned(record, part)
    return found


def joined(documents: Sequence[Record]) -> Record:
    """One record of several comparisons; of a method that is in more than one, the first.

    Rows of the frozen model, under whatever names, are those of the first comparison.

    Raises:
        ValueError: they do not have the same settings.
    """
    first, *others = documents
    rows, notes, ran = list(first["rows"]), list(first["notes"]), [_ran(first, first["rows"])]
    failures = list(first["failures"])
    for other in others:
        for name in ("data", "backbone", "settings", "task_options"):
            if first["config"].get(name) != other["config"].get(name):
                raise ValueError(f"{other['title']}: {name} differs from the first comparison")
        known = {row["method"] for row in rows}
        new = [row for row in other["rows"] if row["trained"] and row["method"] not in known]
        named = {row["method"] for row in new}
        rows += new
        notes += [note for note in other["notes"] if note.partition(": ")[0] in named]
        failures += other["failures"]
        ran.append(_ran(other, new))
    return {
        **first,
        "rows": rows,
        "notes": notes,
        "failures": failures,
        "ran": ran,
    }


def planned(record: Record, part: str) -> Record:
    """The record with what the suite says: which rates are tuned, who is left out or missing."""
    (suite,) = read_suite(SUITE, [part])
    known = {row["method"] for row in record["rows"]}
    known |= {failure["method"] for failure in record["failures"]}
    waiting = [method for method in suite.recipe["methods"] if method not in known]
    config = {**record["config"], "tuned": suite.tuned, "left_out": suite.leave_out}
    return {**record, "config": config, "waiting": waiting}


def priced(record: Record, costs: Record | None) -> Record:
    """The record with the seconds and memory of another run in its rows; None: without any."""
    found = {} if costs is None else {row["method"]: row for row in costs["rows"]}
    names = ("seconds", "peak_memory_mb")
    rows = [
        {**row, **{name: found.get(row["method"], {}).get(name) for name in names}}
        for row in record["rows"]
    ]
    return {**record, "rows": rows, "costs": costs}


def missing(part: str) -> str:
    """What stands where numbers are not there yet."""
    return f"*Not measured yet: `crossadapt compare --suite {SUITE} --only {part}` does it.*"


def interval(values: Record) -> str:
    """A mean and its interval over seeds, where there is one."""
    mean = f"{values['estimate']:.1f}"
    return mean if values["low"] is None else f"{mean} [{values['low']:.1f}, {values['high']:.1f}]"


def name_of(row: Record, record: Record) -> str:
    """The method as it was named, marked where its learning rate is a guess."""
    tuned = record["config"].get("tuned")
    guess = tuned is not None and row["trained"] and row["method"] not in tuned
    return f"`{row['method']}`" + (f" {GUESS}" if guess else "")


def table(record: Record) -> str:
    """All rows of a comparison, failures last."""
    shown = [name for name in COLUMNS if name in record["rows"][0]["metrics"]]
    head = ["method", *(COLUMNS[name] for name in shown), "trained", "share", "seconds", "MiB"]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    for row in record["rows"]:
        costs = [_cost(row[name]) for name in ("seconds", "peak_memory_mb")]
        size = [f"{row['trained']:,}", f"{row['share']:.2%}"] if row["trained"] else ["", ""]
        scores = [interval(row["metrics"][name]) for name in shown]
        lines.append(_line([name_of(row, record), *scores, *size, *costs]))
    finished = {row["method"] for row in record["rows"]}
    for failure in record.get("failures", []):
        if failure["method"] not in finished:
            said = f"failed: {failure['reason']}"
            lines.append(_line([f"`{failure['method']}`", said, *[""] * (len(head) - 2)]))
    return "\n".join(lines)


def remarks(record: Record) -> str:
    """What must be known to read the table."""
    config, versions = record["config"], record["versions"]
    found = [
        f"Backbone `{config['backbone']}`, protocol `{record['protocol']}`; in brackets "
        f"the 95 % t interval over seeds. torch {versions['torch']}, "
        f"transformers {versions['transformers']}.",
        *(f"{ran}." for ran in record["ran"]),
    ]
    if record.get("costs"):
        found.append(f"Seconds and MiB: {_ran(record['costs'])}.")
    if record.get("waiting"):
        names = ", ".join(f"`{method}`" for method in record["waiting"])
        found.append(f"**Not measured yet**: {names}.")
    if config.get("tuned") is not None:
        found.append(f"{GUESS} The learning rate is a first guess, not tuned on validation data.")
    finished = {row["method"] for row in record["rows"]}
    for failure in record.get("failures", []):
        if failure["method"] in finished:
            seeds = ", ".join(map(str, failure["seeds"]))
            found.append(f"`{failure['method']}` failed with seed {seeds}: {failure['reason']}.")
    for method, why in config.get("left_out", {}).items():
        found.append(f"`{method}` does not take part: {why}.")
    return "\n".join(f"- {line}" for line in [*found, *record["notes"]])


def page(found: Mapping[str, Record | None]) -> str:
    """The whole results page."""
    parts = [HEAD]
    for part, title in PARTS.items():
        record = found[part]
        body = missing(part) if record is None else f"{table(record)}\n\n{remarks(record)}"
        parts.append(f"## {title}\n\n{body}\n")
    return "\n".join(parts)


# -- the decision guide ---------------------------------------------------------------------------


def trained_rows(record: Record) -> list[Record]:
    """Rows of methods that trained, best headline first."""
    headline = record["headline"]
    rows = [row for row in record["rows"] if row["trained"]]
    return sorted(rows, key=lambda row: -row["metrics"][headline]["estimate"])


def not_worse(record: Record) -> list[Record]:
    """Rows whose interval over seeds overlaps that of the best row (the best is one)."""
    rows, headline = trained_rows(record), record["headline"]
    low = rows[0]["metrics"][headline]["low"]
    if low is None:
        return rows[:1]
    return [row for row in rows if row["metrics"][headline]["high"] >= low]


def choice(record: Record, key: Callable[[Record], float], unit: str) -> str:
    """The cheapest row among those that are not worse than the best."""
    row = min(not_worse(record), key=key)
    score = interval(row["metrics"][record["headline"]])
    return f"{name_of(row, record)}: R@1 {score}, {key(row):,.0f} {unit}"


def best(record: Record) -> str:
    """The row with the highest headline, and which others cannot be told from it."""
    row, *_ = trained_rows(record)
    others = [name_of(r, record) for r in not_worse(record) if r is not row]
    tied = f"; intervals overlap with {', '.join(others)}" if others else ""
    return f"{name_of(row, record)}: R@1 {interval(row['metrics'][record['headline']])}{tied}"


def smallest(record: Record) -> str:
    """Fewest trained parameters among the rows that are not worse than the best."""
    return choice(record, lambda row: row["trained"], "trained parameters")


def fastest(record: Record) -> str:
    """Least time among them."""
    if not _has_costs(record):
        return NO_COSTS
    return choice(record, lambda row: row["seconds"]["estimate"], "seconds an epoch")


def leanest(record: Record) -> str:
    """Least memory among them."""
    if not _has_costs(record):
        return NO_COSTS
    return choice(record, lambda row: row["peak_memory_mb"]["estimate"], "MiB")


def useless(record: Record) -> str:
    """Methods whose interval does not lie above the frozen model, and those that failed."""
    headline = record["headline"]
    zero = max(row["metrics"][headline]["estimate"] for row in record["rows"] if not row["trained"])

    def bound(row: Record) -> float:
        values = row["metrics"][headline]
        return values["estimate"] if values["low"] is None else values["low"]

    rows = [name_of(row, record) for row in trained_rows(record) if bound(row) <= zero]
    finished = {row["method"] for row in record["rows"]}
    failed = {f["method"] for f in record.get("failures", []) if f["method"] not in finished}
    rows += [f"`{method}` (failed)" for method in sorted(failed)]
    return ", ".join(rows) if rows else "none"


def ordered(record: Record) -> str:
    """Methods that know what comes first: the order probe's whole interval is above chance."""
    rows = trained_rows(record)
    if PROBE not in rows[0]["metrics"]:
        return "nothing to tell, pictures have no order"
    found = [
        f"{name_of(row, record)} {interval(row['metrics'][PROBE])}"
        for row in rows
        if (row["metrics"][PROBE]["low"] or 0) > CHANCE
    ]
    return ", ".join(found) if found else "none"


QUESTIONS: dict[str, Callable[[Record], str]] = {
    "best": best,
    "smallest": smallest,
    "fastest": fastest,
    "leanest": leanest,
    "no-gain": useless,
    "order": ordered,
}
_BLOCK = re.compile(r"(<!-- measured: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.S)


def guide(text: str, found: Mapping[str, Record | None]) -> str:
    """The decision guide with every measured part written anew.

    Raises:
        KeyError: a part asks a question that is not in `QUESTIONS`.
    """

    def answer(match: re.Match[str]) -> str:
        ask = QUESTIONS[match[2]]
        lines = [
            f"- {PARTS[part]}: " + (missing(part) if record is None else ask(record))
            for part, record in found.items()
        ]
        return match[1] + "\n".join(lines) + "\n" + match[4]

    return _BLOCK.sub(answer, text)


def pages(root: Path = ROOT) -> dict[Path, str]:
    """What each page should say."""
    found = records(root)
    choosing = root / "docs" / "which-method.md"
    return {
        root / "docs" / "results" / f"{SUITE}.md": page(found),
        choosing: guide(choosing.read_text(encoding="utf-8"), found),
    }


def _read(path: Path) -> Record | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _has_costs(record: Record) -> bool:
    return all(row["seconds"] for row in trained_rows(record))


def _ran(record: Record, rows: Sequence[Record] = ()) -> str:
    config = record["config"]
    seeds, threads = ", ".join(map(str, config["seeds"])), config["threads"]
    names = ", ".join(f"`{row['method']}`" for row in rows if row["trained"])
    said = f"seeds {seeds}, {config['precision']}, threads {threads}"
    return f"{names}: {said}" if names else said


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _cost(values: Record | None) -> str:
    return "" if values is None else f"{values['estimate']:,.0f}"
