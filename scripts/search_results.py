"""Write docs/results/search.md from the JSON documents that the search benches wrote.

    python bench/search.py --output docs/results/search/search.json
    python bench/index_resume.py --output docs/results/search/index_resume.json
    python bench/serve_load.py --output docs/results/search/serve_load.json
    python scripts/results.py --write

A document that is missing is named on the page as not measured; no figure is typed by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUSY = 0.5

HEAD = """# Results: search

Measured by the commands beside the tables; the JSON documents are what the commands wrote, and
`python scripts/results.py --write` makes this page of them.
"""


def documents(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Name of a bench to what it wrote."""
    found = sorted((root / "docs" / "results" / "search").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in found}


def command(name: str) -> str:
    """The command of a bench, and a link to what it wrote."""
    return f"```bash\npython bench/{name}.py --output docs/results/search/{name}.json\n```\n"


def machine(document: dict[str, Any]) -> str:
    """One sentence: where, and how busy it was."""
    seen = document["machine"]
    said = (
        f"{seen['processor']}, {seen['cores']} cores, {seen['memory_gib']:.0f} GiB, "
        f"{seen['threads']} thread{'s' * (seen['threads'] != 1)} for PyTorch, "
        f"Python {seen['python']}, PyTorch {seen['torch']}."
    )
    if seen["load_average"] > BUSY:
        said += (
            f" **Not surely alone**: the load average was {seen['load_average']:g} on "
            f"{seen['cores']} cores when it began, of other work or of what had ended just before; "
            "times can be too long and rates too low, on all sides alike. What was found and lost "
            "does not depend on it."
        )
    return said + "\n"


def search(document: dict[str, Any]) -> str:
    """Recall and times beside the other engines."""
    text = (
        f"{document['rows']:,} clustered unit vectors of {document['dim']} numbers; "
        f"{document['queries']} queries, {document['rounds']} times each, one at a time, each to "
        "all sides in turn. Recall is of the exact ten nearest. *Exact* and *index* are the same "
        "collection with the usual exact limit, and with an index forced; bare LanceDB has the "
        "index its documentation suggests. FAISS, hnswlib and usearch hold the vectors in memory, "
        "know no rows and no columns, and give numbers instead of items.\n\n"
    )
    for question in ("unfiltered", "filter of 1 %"):
        text += f"| {question} | recall@10 | p50 ms | p95 ms |\n|---|---:|---:|---:|\n"
        for side, found in document[question].items():
            figures = f"{found['recall_at_10']:.3f} | {found['p50_ms']:g} | {found['p95_ms']:g}"
            text += f"| {side} | {figures} |\n"
        text += "\n"
    batch = document["64 queries at once"]
    text += (
        f"64 queries at once: {batch['ours, exact_ms']:g} ms for the exact path, "
        f"{batch['bare product_ms']:g} ms for the bare matrix product of NumPy. "
        f"`stats` shows a measured recall of {document['recall_in_stats']:.3f} for the index; the "
        f"promise is 0.95 through it and 0.99 behind the filter. LanceDB {document['lancedb']}, "
        + ", ".join(f"{name} {seen}" for name, seen in document["libraries"].items())
        + ".\n"
    )
    return text


def index_resume(document: dict[str, Any]) -> str:
    """Kills, and what the resumed job gave."""
    whole, last, again = (document[k] for k in ("uninterrupted", "last_run", "second_full_run"))
    text = (
        f"{document['items']:,} rendered pictures into a collection with `{document['backbone']}`, "
        "once left alone, once with `kill -9` at random moments.\n\n"
        "| | seconds | rows afterwards | embedded in this run | processes left |\n"
        "|---|---:|---:|---:|---:|\n"
        f"| left alone | {whole['seconds']:.0f} | {whole['rows']:,} | {whole['embedded']:,} | 0 |\n"
    )
    for number, kill in enumerate(document["kills"], 1):
        text += (
            f"| kill {number} | {kill['after_seconds']:.0f} | {kill['rows']:,} | | "
            f"{kill['processes_left']} |\n"
        )
    text += (
        f"| to the end | {last['seconds']:.0f} | {last['rows']:,} | {last['embedded']:,} | |\n"
        f"| once more | {again['seconds']:.0f} | | {again['embedded']:,} | |\n\n"
    )
    same = "the same ids, each once" if document["same_ids"] else "**other ids**"
    text += (
        f"Killed and resumed gave {same}, and vectors that differ by at most "
        f"{document['largest_difference']:.1e}; {document['items_per_second']:g} items per "
        "second when left alone.\n"
    )
    return text


def serve_load(document: dict[str, Any]) -> str:
    """A server under load, and one that has to refuse."""
    text = (
        f"{document['connections']} connections over the loopback ask texts, pictures, filters, "
        "blends, the frozen view and two adapters of one backbone, in a collection of "
        f"{document['rows']:,} pictures. Every answer is compared with the one given alone.\n\n"
        "| | usual queue (256) | queue of "
        f"{document['short_queue']['queue']} |\n|---|---:|---:|\n"
    )
    sides = [document["load"], document["short_queue"]]
    rows = {
        "answers": [f"{one['answers']:,}" for one in sides],
        "per second": [f"{one['per_second']:g}" for one in sides],
        "p50, p95, p99 ms": [
            f"{one['p50_ms']:,}, {one['p95_ms']:,}, {one['p99_ms']:,}" for one in sides
        ],
        "statuses": [
            ", ".join(f"{status}: {count:,}" for status, count in one["statuses"].items())
            for one in sides
        ],
        "dropped connections": [str(one["dropped_connections"]) for one in sides],
        "other results than alone": [str(one["other_results_than_alone"]) for one in sides],
        "largest difference of a cosine": [
            f"{one['largest_cosine_difference']:.1e}" for one in sides
        ],
    }
    text += "".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in rows.items())
    load, short = sides
    text += (
        f"\nMemory of the server during the {document['seconds']:g} s: "
        f"{', '.join(f'{size:.0f}' for size in load['memory_mb'])} MB "
        f"({load['memory_growth']:+.1%}). With the short queue the clients saw "
        f"{short['statuses'].get('429', 0):,} times 429, every time with `Retry-After` "
        f"({short['refusals_without_retry_after']} without), and the server counted "
        f"{short['refused_by_the_server']:,} refusals for its queue.\n"
    )
    return text


SECTIONS = {
    "search": ("Recall and time beside other engines", search),
    "index_resume": ("Killed and resumed", index_resume),
    "serve_load": ("Under load", serve_load),
}


def page(root: Path = ROOT) -> str:
    """The whole page."""
    found, text = documents(root), HEAD
    for name, (title, write) in SECTIONS.items():
        text += f"\n## {title}\n\n{command(name)}\n"
        if name not in found:
            text += "Not measured yet.\n"
            continue
        text += f"{write(found[name])}\n{machine(found[name])}"
        text += f"The document: [{name}.json](search/{name}.json).\n"
    return text


def pages(root: Path = ROOT) -> dict[Path, str]:
    """The page by its place."""
    return {root / "docs" / "results" / "search.md": page(root)}
