"""Single items: what is stored about them, their small pictures, their files."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from crossadapt.search.card import attribute_column
from crossadapt.search.clips import still
from crossadapt.search.query import Query as Search
from crossadapt.search.server.admission import while_connected
from crossadapt.search.server.catalogue import Served
from crossadapt.search.server.failures import Failure, stored
from crossadapt.search.server.originals import media_type
from crossadapt.search.server.routes_search import ERRORS, SEARCH_ERRORS, chosen
from crossadapt.search.server.schemas import ErrorOut, ItemOut
from crossadapt.search.server.searching import address, base_name, plain, search
from crossadapt.search.server.sending import OriginalResponse, bytes_answer
from crossadapt.search.server.state import State, state_of

routes = APIRouter(tags=["items"])

_COLUMNS = (
    "id", "item", "kind", "texts", "group", "width", "height", "bytes", "modified", "duration",
    "added",
)  # fmt: skip
_BYTES = {"content": {"application/octet-stream": {}}}
_FILE = {
    200: {**_BYTES, "description": "The file."},
    206: {**_BYTES, "description": "The range asked for."},
    304: {"description": "Unchanged."},
    410: {"model": ErrorOut, "description": "Gone, or changed since it was indexed."},
    416: {"model": ErrorOut, "description": "No such range."},
}

Id = Annotated[
    str,
    Path(min_length=1, max_length=128, pattern=r"^[0-9A-Za-z_-]+$", description="Id of an item."),
]
In = Annotated[
    str, Query(max_length=100, description="Collection; may be left out when one is served.")
]
Here = Annotated[State, Depends(state_of)]


@routes.get("/items/{id}", responses=SEARCH_ERRORS, summary="Everything about an item")
async def item(
    request: Request,
    id: Id,
    state: Here,
    collection: In = "",
    neighbours: Annotated[int, Query(ge=0, le=100, description="How many similar items.")] = 12,
    view: Annotated[str, Query(max_length=100, description="View of the neighbours.")] = "",
) -> ItemOut:
    """Stored facts, captions, attributes, and the items nearest to it."""

    async def work() -> ItemOut:
        with state.catalogue.using(chosen(state, collection)) as served:
            columns = [*_COLUMNS, *map(attribute_column, served.card.attributes)]
            row = await state.run(state.searching, _row, served, id, columns)
            near = []
            if neighbours:
                query = Search(like=id, k=neighbours, view=view or None)
                near = (await search(state, served, query)).hits
            return _item(served, row, near)

    with state.admission.slot():
        return await state.admission.in_time(while_connected(request, work()))


@routes.get(
    "/thumbnail/{id}",
    responses={**ERRORS, 200: {"content": {"image/*": {}}}, 304: {"description": "Unchanged."}},
    response_class=Response,
    summary="Small picture of an item",
)
async def thumbnail(
    request: Request,
    id: Id,
    state: Here,
    collection: In = "",
    frame: Annotated[
        int | None, Query(ge=0, le=100_000, description="Number of a stored frame of a clip.")
    ] = None,
) -> Response:
    """A JPEG or WebP that is stored in the collection; the original is not read."""
    with state.catalogue.using(chosen(state, collection)) as served:
        content = await state.run(state.reading, _small_picture, served, id, frame)
    if content is None:
        raise Failure(404, "the item has no thumbnail", where=id)
    # The id is the hash of the content, so that its picture stays the same for ever.
    return bytes_answer(
        content,
        media_type(content),
        f"{id}-{len(content)}" if frame is None else f"{id}-{frame}-{len(content)}",
        request.headers,
        Cache_Control="private, max-age=86400",
    )


@routes.get(
    "/file/{id}",
    responses={**ERRORS, **_FILE},
    response_class=Response,
    summary="The original of an item",
)
async def original(request: Request, id: Id, state: Here, collection: In = "") -> Response:
    """The file as it was indexed; ranges are supported. One that has changed since is not sent."""

    def opened(served: Served) -> OriginalResponse:
        row = _row(served, id, ["item", "bytes"])
        found = state.originals.open(id, row["item"], row["bytes"])
        return OriginalResponse(found, id, base_name(row["item"]), request.method == "HEAD")

    with state.catalogue.using(chosen(state, collection)) as served:
        return await state.run(state.reading, opened, served)


for path, endpoint in (("/thumbnail/{id}", thumbnail), ("/file/{id}", original)):
    routes.add_api_route(
        path, endpoint, methods=["HEAD"], response_class=Response, include_in_schema=False
    )


def _small_picture(served: Served, name: str, frame: int | None) -> bytes | None:
    """The stored small picture of an item, or that of one frame of a clip."""
    row = _row(served, name, ["thumbnail"])
    if frame is None:
        return row["thumbnail"]
    with stored():
        content = still(served.collection, name, frame)
    if content is None:
        raise Failure(404, f"the item has no frame {frame}", where=name, fix="leave frame out")
    return content


def _row(served: Served, name: str, columns: list[str]) -> dict[str, Any]:
    with stored():
        rows = served.collection.get([name], columns).to_pylist()
    if not rows:
        raise Failure(
            404,
            f"collection {served.card.name!r} has no item {name[:100]!r}",
            where="id",
            fix="give the id of a hit",
        )
    return rows[0]


def _item(served: Served, row: dict[str, Any], near: list[Any]) -> ItemOut:
    name, card = row["id"], served.card
    return ItemOut(
        id=name,
        name=base_name(row["item"]),
        kind=row["kind"] or "image",
        texts=list(row["texts"] or ()),
        group=row["group"],
        attributes=plain({a: row[attribute_column(a)] for a in card.attributes}),
        width=row["width"] or 0,
        height=row["height"] or 0,
        duration=row["duration"] or 0.0,
        bytes=row["bytes"] or 0,
        modified=row["modified"] or 0.0,
        added=row["added"].isoformat() if row["added"] else None,
        thumbnail=address("thumbnail", name, card.name),
        file=address("file", name, card.name),
        neighbours=near,
    )
