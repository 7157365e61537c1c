"""What there is: collections, facets, adapters, health, metrics."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from crossadapt.backbones.blip import BlipBackbone
from crossadapt.search.filter_parser import parse
from crossadapt.search.server.admission import while_connected
from crossadapt.search.server.catalogue import Served, health
from crossadapt.search.server.failures import asked, stored
from crossadapt.search.server.routes_search import ERRORS, SEARCH_ERRORS
from crossadapt.search.server.schemas import (
    AdapterOut,
    CollectionOut,
    FacetOut,
    FacetsOut,
    HealthOut,
    ServerOut,
    ViewOut,
)
from crossadapt.search.server.searching import plain
from crossadapt.search.server.state import State, state_of

routes = APIRouter()

Here = Annotated[State, Depends(state_of)]


@routes.get("/collections", responses=ERRORS, tags=["collections"], summary="What can be searched")
async def collections(state: Here) -> list[CollectionOut]:
    """Every collection with its views, attributes, example queries and health."""
    problems = state.catalogue.problems
    return [
        CollectionOut(
            name=name,
            rows=served.stats["rows"],
            dim=served.card.dim,
            default_view=served.card.default_view,
            views=[
                ViewOut(name=v.name, method=v.method, trained=v.trained, fingerprint=v.fingerprint)
                for v in served.card.views
            ],
            attributes=dict(served.card.attributes),
            rerank=isinstance(served.bound.backbone, BlipBackbone),
            examples=served.examples,
            health=HealthOut(**health(name, served, problems)),
        )
        for name, served in state.catalogue.all()
    ]


@routes.get(
    "/collections/{name}/facets",
    responses=SEARCH_ERRORS,
    tags=["collections"],
    summary="Values of the attributes with counts",
)
async def facets(
    request: Request,
    name: Annotated[str, Path(max_length=100)],
    state: Here,
    filter: Annotated[str, Query(max_length=4000, description="Only items that pass.")] = "",
) -> FacetsOut:
    """The commonest values of every attribute, and of the kind, among the items that pass."""

    def count(served: Served) -> FacetsOut:
        with asked():
            parse(filter, served.card.filterable)
        with stored():
            found = served.collection.facets(filter=filter)
            rows = served.collection.scan(["id"], filter) if filter.strip() else ()
            passing = sum(b.num_rows for b in rows) if rows else len(served.collection)
        return FacetsOut(
            facets={
                attribute: [FacetOut(value=plain({"v": v})["v"], count=n) for v, n in values]
                for attribute, values in found.items()
            },
            passing=passing,
        )

    async def work() -> FacetsOut:
        with state.catalogue.using(name) as served:
            return await state.run(state.searching, count, served)

    with state.admission.slot():
        return await state.admission.in_time(while_connected(request, work()))


@routes.get("/adapters", responses=ERRORS, tags=["collections"], summary="The adapters in use")
async def adapters(state: Here) -> list[AdapterOut]:
    """Each adapter once, with its size and the collections that hold its embeddings."""
    found = await asyncio.to_thread(state.catalogue.adapters)
    return [AdapterOut(**entry) for entry in found]


@routes.get("/health", tags=["server"], summary="Whether the server works")
async def alive(state: Here) -> ServerOut:
    """For probes; needs no token and tells nothing about the data."""
    return ServerOut(status="ok", version=version("crossadapt"))


@routes.get(
    "/metrics",
    responses={**ERRORS, 200: {"content": {"text/plain": {}}}},
    response_class=Response,
    tags=["server"],
    summary="Prometheus metrics",
)
async def metrics(state: Here) -> Response:
    """Requests, latencies, queue, batches, rows, recall, memory."""
    text = await asyncio.to_thread(state.metrics.render)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
