"""``crossadapt search``: find items of a collection from the terminal."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from crossadapt.cli.options import parse as parse_options
from crossadapt.cli.output import json_only

if TYPE_CHECKING:
    from crossadapt.search.pictures import Protocol
    from crossadapt.search.query import Query


@dataclass(frozen=True)
class SearchOptions:
    """Find items of a collection by words, by a picture, or by both.

    The model and its adapters are those the collection was made with. Scores: `cosine` is the
    likeness of query and item; `calibrated` is the share of unrelated queries that find nothing
    as striking in this collection.
    """

    collection: Annotated[str, tyro.conf.Positional]
    """Name of a collection; `crossadapt collection list` shows them."""
    query: Annotated[str, tyro.conf.Positional] = ""
    """Words to look for."""
    image: Path | None = None
    """A picture to look for; with words, both count."""
    like: str = ""
    """Id of an item: more like this. Ids are in the output of --json."""
    exclude: str = ""
    """Words to take out of the query, such as `text` or `people`."""
    weight: float = 0.5
    """Share of the words, from 0 to 1, when there is a picture too."""
    k: int = 10
    """How many hits."""
    filter: str = ""
    """Only items that pass, such as `colour = "red" and year >= 2020`."""
    view: str | None = None
    """Embeddings to search, `frozen` or an adapter's name; the collection's default when unset."""
    strength: float = 1.0
    """How much of the adapter, from 0 (the frozen model) to 1."""
    exact: bool = False
    """Compare with every item, also where there is an index."""
    compare: bool = False
    """Also show what the frozen model finds, and where it ranks each hit."""
    rerank: int = 0
    """Let the fusion tower judge the so many nearest items and sort them anew (BLIP backbones)."""
    store: str | None = None
    """Folder or s3:// address of the collections; the user's own when unset."""
    json: bool = False
    """Print one JSON document instead of the table."""
    images: Literal["auto", "blocks", "never"] = "auto"
    """Small pictures: where the terminal can draw them, as coloured blocks, or never. Never when
    the output is no terminal."""


def parse(args: Sequence[str]) -> SearchOptions | None:
    """Options, or None when help was printed."""
    return parse_options(SearchOptions, args, "search")


def run(options: SearchOptions) -> int:
    """Search and print."""
    with _uncollected():
        return _search(options)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection inside the block.

    Most of one search is importing. It makes hundreds of thousands of objects that all stay, and
    going through them again and again to find garbage takes a fifteenth of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _search(options: SearchOptions) -> int:
    from crossadapt.search.collection import Collections
    from crossadapt.search.opening import open_embedder
    from crossadapt.search.query import Searcher, check
    from crossadapt.search.show import document, show

    with json_only(options.json) as print_json:
        collection = Collections(options.store).open(options.collection)
        query = _query(options)
        # What can be refused is refused before a model is loaded.
        views = check(query, collection)
        searcher = Searcher(collection, open_embedder(collection, views))
        result = searcher.search(query, picture_name=str(options.image or "image"))
        print_json(document(result, options.collection, query))
        if not options.json:
            show(result, collection, query, _protocol(options.images))
    return 0


def _query(options: SearchOptions) -> Query:
    from crossadapt.search.query import Query

    image = None
    if options.image is not None:
        from crossadapt.search.query_picture import read_picture

        image = read_picture(options.image)
    return Query(
        text=options.query,
        image=image,
        like=options.like,
        exclude=options.exclude,
        weight=options.weight,
        k=options.k,
        filter=options.filter,
        view=options.view,
        strength=options.strength,
        exact=options.exact,
        compare=options.compare,
        rerank=options.rerank,
    )


def _protocol(images: str) -> Protocol:
    """How to draw pictures on this terminal, if at all."""
    from crossadapt.search.pictures import detect

    terminal = sys.stdout.isatty()
    if images == "never" or not terminal:
        return ""
    return "blocks" if images == "blocks" else detect(os.environ, terminal)
