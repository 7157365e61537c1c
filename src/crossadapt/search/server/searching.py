"""One search from parameters to answer: check, decode, embed with others, rank."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from crossadapt.search.query import Hit, Prepared, Query, Result, compose, prepare, rank
from crossadapt.search.request import check
from crossadapt.search.reranking import Reranker
from crossadapt.search.server.catalogue import Served
from crossadapt.search.server.failures import asked, stored
from crossadapt.search.server.schemas import HitOut, SearchOut, TookOut
from crossadapt.search.server.state import State


async def search(
    state: State, served: Served, query: Query, picture_name: str = "image"
) -> SearchOut:
    """The answer to a query.

    Raises:
        Failure: 422 what is asked cannot be answered, 503 the collection cannot be read.
    """
    began = time.perf_counter()
    with asked():
        check(query, served.collection, state.settings.limits)
        gone = threading.Event()
        reranker = _reranker(state, served, gone) if query.rerank else None
    prepared = await _prepare(state, served, query, picture_name)
    embedding = time.perf_counter()
    if prepared.texts or prepared.pixels is not None:
        bound = served.bound
        job = state.batcher.submit(bound.engine.embedder, prepared, bound.names)
        vectors = await asyncio.wrap_future(job)
    else:
        vectors = {view: {} for view in prepared.views}
    ranking = time.perf_counter()
    pool = state.searching if reranker is None else state.judging
    try:
        result = await state.run(pool, _rank, served, prepared, vectors, reranker)
    except asyncio.CancelledError:
        gone.set()
        raise
    now = time.perf_counter()
    judging = result.seconds.get("rerank", 0.0)
    return SearchOut(
        collection=served.card.name,
        view=result.view,
        strength=result.strength,
        k=query.k,
        plan=result.plan,
        searched=result.searched,
        passing=result.passing,
        took_ms=TookOut(
            embed=_ms(ranking - embedding),
            search=_ms(now - ranking - judging),
            rerank=_ms(judging),
            total=_ms(now - began),
        ),
        notes=result.notes,
        hits=hits_out(result.hits, served.card.name),
        frozen_hits=None
        if result.frozen_hits is None
        else hits_out(result.frozen_hits, served.card.name),
    )


async def _prepare(state: State, served: Served, query: Query, name: str) -> Prepared:
    def work() -> Prepared:
        with asked():
            return prepare(
                query,
                served.collection,
                state.settings.limits,
                transform=served.bound.prepare,
                picture_name=name,
            )

    if query.image is not None:
        return await state.run(state.decoding, work)
    if query.like:
        return await state.run(state.searching, work)
    return work()


def _reranker(state: State, served: Served, gone: threading.Event) -> Reranker:
    return Reranker(served.collection, served.bound, originals=state.originals, stopped=gone.is_set)


def _rank(
    served: Served, prepared: Prepared, vectors: Mapping[str, Any], reranker: Reranker | None
) -> Result:
    with asked():  # the one thing about the query that shows only in its vectors
        compose(prepared, vectors, prepared.view, prepared.strength)
        if prepared.query.compare:
            compose(prepared, vectors, "frozen", 1.0)
    with stored():
        return rank(prepared, vectors, served.collection, served.calibration, reranker)


def hits_out(hits: Sequence[Hit], collection: str) -> list[HitOut]:
    """Hits as they are sent."""
    return [
        HitOut(
            id=hit.id,
            name=base_name(hit.item),
            rank=hit.rank,
            cosine=hit.cosine,
            calibrated=hit.calibrated,
            kind=hit.kind,
            texts=hit.texts,
            attributes=plain(hit.attributes),
            width=hit.width,
            height=hit.height,
            duration=hit.duration,
            frozen_rank=hit.frozen_rank,
            match=hit.match,
            start=hit.start,
            thumbnail=address("thumbnail", hit.id, collection)
            + (f"&frame={hit.frame}" if hit.frame is not None else ""),
        )
        for hit in hits
    ]


def base_name(item: str) -> str:
    """The last part of an item's path: where the files lie is nobody's business."""
    _, inside, member = item.replace("\\", "/").rpartition("#")
    name = PurePosixPath(member).name
    if inside and name.isdigit():  # a row of a table
        return f"{PurePosixPath(item.rpartition('#')[0]).name}#{name}"
    return name or "item"


def address(what: str, name: str, collection: str) -> str:
    """Where an item's thumbnail or file is."""
    return f"/{what}/{quote(name, safe='')}?collection={quote(collection, safe='')}"


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Attribute values as JSON can say them; infinities become null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
