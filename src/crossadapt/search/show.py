"""What a search prints: tables for people, one JSON document for programs."""

from __future__ import annotations

import io
import math
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from crossadapt.search.clips import still
from crossadapt.search.query import Hit, Query, Result

if TYPE_CHECKING:
    from crossadapt.search.collection import Collection
    from crossadapt.search.pictures import Protocol

_PIPE_WIDTH = 400
_ISOLATE, _POP = "\u2068", "\u2069"


def document(result: Result, collection: str, query: Query) -> dict[str, Any]:
    """The result as plain JSON values; numbers that JSON does not have become null."""
    return _plain(
        {
            "collection": collection,
            "query": {"text": query.text, "like": query.like, "exclude": query.exclude,
                      "image": query.image is not None, "filter": query.filter},
            "view": result.view,
            "strength": result.strength,
            "k": query.k,
            "rerank": query.rerank,
            "plan": result.plan,
            "searched": result.searched,
            "passing": result.passing,
            "seconds": {name: round(value, 6) for name, value in result.seconds.items()},
            "notes": result.notes,
            "hits": [asdict(hit) for hit in result.hits],
            "frozen_hits": None
            if result.frozen_hits is None
            else [asdict(hit) for hit in result.frozen_hits],
        }
    )  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def legible(text: str, *, isolate: bool = True) -> str:
    """Text that cannot disturb a terminal: control characters are replaced.

    With `isolate`, right-to-left text is put between marks (U+2068, U+2069) that keep it from
    reordering its line.
    """
    # A file name or caption may hold escape sequences or direction overrides.
    text = "".join("\N{REPLACEMENT CHARACTER}" if _harmful(c) else c for c in text)
    rtl = any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
    return f"{_ISOLATE}{text}{_POP}" if rtl and isolate else text


def _harmful(character: str) -> bool:
    kind = unicodedata.category(character)
    # Cf holds the joiners of emoji and Indic scripts, which must stay; bidi controls must not.
    return kind in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in (
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    )  # fmt: skip


def show(result: Result, collection: Collection, query: Query, pictures: Protocol = "") -> None:
    """Print hits as a table (and the frozen model's when compared), then small pictures.

    Args:
        result: from a `Searcher`.
        collection: where thumbnails come from.
        query: for the title.
        pictures: how to draw them, from `pictures.detect`; nothing when empty.
    """
    adapter = f"view {result.view}"
    if result.strength != 1:
        adapter += f", strength {result.strength:g}"
    title = f"{collection.card.name}: {asked(query)} ({adapter})"
    _table(title, result.hits, compared=result.frozen_hits is not None, name="frozen rank")
    _draw(result.hits, collection, pictures)
    if result.frozen_hits is not None:
        _table("the frozen model", result.frozen_hits, compared=False, name="")
        _draw(result.frozen_hits, collection, pictures)
    print(
        f"{len(result.hits)} of {result.passing:,} items, {result.plan}, "
        f"{result.seconds.get('total', 0):.2f} s"
    )
    if query.rerank:
        judged = sum(hit.match is not None for hit in result.hits)
        print(
            f"re-ranked the {query.rerank} nearest in {1000 * result.seconds['rerank']:.0f} ms; "
            f"{judged} of the hits shown were judged"
        )
    for note in result.notes:
        print(f"note: {legible(note)}", file=sys.stderr)


def asked(query: Query) -> str:
    """The query in a few words."""
    parts = [f'"{legible(query.text)}"'] if query.text else []
    parts += ["a picture"] if query.image is not None else []
    parts += [f"like {query.like[:12]}"] if query.like else []
    words = " and ".join(parts)
    words += f' without "{legible(query.exclude)}"' if query.exclude else ""
    return words + (f" where {legible(query.filter)}" if query.filter else "")


def _table(title: str, hits: Sequence[Hit], *, compared: bool, name: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print(title)  # a title of the grid's own would be wrapped to the width of its columns
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    judged = any(hit.match is not None for hit in hits)
    numbers = ["rank", *(["match"] if judged else []), "cosine", "calibrated"]
    numbers += [name] if compared else []
    clips = any(hit.start is not None for hit in hits)
    numbers += ["at"] if clips else []
    for column in numbers:
        grid.add_column(column, justify="right", no_wrap=True)
    # Captions come last: a script whose width the terminal counts otherwise moves nothing else.
    grid.add_column("item", overflow="fold")
    grid.add_column("caption", overflow="fold")
    terminal = sys.stdout.isatty()
    for hit in hits:
        calibrated = "-" if hit.calibrated is None else f"{hit.calibrated:.2f}"
        frozen = "-" if hit.frozen_rank is None else f"{hit.frozen_rank:,}"
        match = "-" if hit.match is None else f"{hit.match:.2f}"
        cells = [str(hit.rank), *([match] if judged else []), f"{hit.cosine:.3f}", calibrated]
        cells += [frozen] if compared else []
        if clips:
            cells.append("" if hit.start is None else f"{hit.start:.1f} s")
        caption = hit.texts[0] if hit.texts else ""
        # Marks would become part of a path that is copied out of a pipe.
        item = Text(legible(hit.item, isolate=terminal))
        grid.add_row(*cells, item, Text(legible(caption)))
    # In a pipe nothing is cut: programs and `grep` want whole lines.
    width = None if terminal else _PIPE_WIDTH
    Console(file=sys.stdout, highlight=False, width=width).print(grid)


def _draw(hits: Sequence[Hit], collection: Collection, protocol: Protocol) -> None:
    if not protocol or not hits:
        return
    import shutil

    from PIL import Image

    from crossadapt.search.pictures import strip

    table = collection.get([hit.id for hit in hits], ["id", "thumbnail"])
    stored = {row["id"]: row["thumbnail"] for row in table.to_pylist() if row["thumbnail"]}
    for hit in hits:
        if hit.frame is not None and (best := still(collection, hit.id, hit.frame)):
            stored[hit.id] = best
    drawn = [
        (str(hit.rank), Image.open(io.BytesIO(stored[hit.id]))) for hit in hits if hit.id in stored
    ]
    if drawn:
        print(strip(drawn, protocol, shutil.get_terminal_size().columns))
