"""``/search``: by text with GET, with a picture by POST."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import ValidationError

from crossadapt.search.server.admission import while_connected
from crossadapt.search.server.failures import Failure, invalid
from crossadapt.search.server.schemas import ErrorOut, SearchOut, SearchParams
from crossadapt.search.server.searching import search
from crossadapt.search.server.state import State, state_of
from crossadapt.search.server.uploads import read_form

routes = APIRouter(tags=["search"])

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorOut, "description": "A token is needed."},
    404: {"model": ErrorOut, "description": "No such collection or item."},
    421: {"model": ErrorOut, "description": "The server does not answer to that host name."},
    422: {"model": ErrorOut, "description": "What is asked cannot be answered; it says why."},
    503: {"model": ErrorOut, "description": "Not in time, or the collection cannot be read."},
}
SEARCH_ERRORS = ERRORS | {
    429: {
        "model": ErrorOut,
        "description": "Too many searches are waiting; see `Retry-After`.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    }
}
UPLOAD_ERRORS = SEARCH_ERRORS | {
    400: {"model": ErrorOut, "description": "The form cannot be read."},
    403: {"model": ErrorOut, "description": "The form comes from a page of another site."},
    413: {"model": ErrorOut, "description": "The upload is too large."},
    415: {"model": ErrorOut, "description": "The body is not a form."},
}


def form_schema() -> dict[str, Any]:
    """The request body of POST, which is read by hand: the fields of GET and ``image``."""
    schema = SearchParams.model_json_schema()
    image = {
        "type": "string",
        "format": "binary",
        "description": "A picture (JPEG, PNG, WebP, GIF, TIFF, …) as a file.",
    }
    form = {
        "type": "object",
        "properties": {**schema["properties"], "image": image},
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


@routes.get("/search", responses=SEARCH_ERRORS, summary="Search by text or by an item")
async def by_text(
    request: Request,
    params: Annotated[SearchParams, Query()],
    state: Annotated[State, Depends(state_of)],
) -> SearchOut:
    """Words, an item ("more like this"), or both; filters, views, strength."""
    admission = state.admission
    with admission.slot():
        return await admission.in_time(while_connected(request, _answer(state, params)))


@routes.post(
    "/search",
    responses=UPLOAD_ERRORS,
    summary="Search by picture",
    openapi_extra={"requestBody": form_schema()},
)
async def by_picture(request: Request, state: Annotated[State, Depends(state_of)]) -> SearchOut:
    """The same with a picture, alone or with words."""
    admission = state.admission
    with admission.slot(), admission.upload() as arrived:
        return await admission.in_time(_upload(request, state, arrived))


async def _upload(request: Request, state: State, arrived: Any) -> SearchOut:
    form = await read_form(request, state.settings.max_upload, arrived)
    params = read_params(form.fields)
    return await while_connected(request, _answer(state, params, form.image, form.filename))


async def _answer(
    state: State, params: SearchParams, image: bytes | None = None, filename: str = ""
) -> SearchOut:
    with state.catalogue.using(chosen(state, params.collection)) as served:
        name = filename[:100] or "image"
        return await search(state, served, params.query(image), name)


def read_params(fields: Mapping[str, str]) -> SearchParams:
    """Parameters from the text fields of a form.

    Raises:
        Failure: 422, unknown or malformed; the first one is told.
    """
    try:
        return SearchParams.model_validate(dict(fields))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise invalid(list(found), SearchParams.model_fields) from error


def chosen(state: State, name: str) -> str:
    """The collection named, or the only one.

    Raises:
        Failure: 422, none is named and there are several.
    """
    names = state.catalogue.names
    if name or len(names) == 1:
        return name or names[0]
    raise Failure(422, "which collection?", where="collection", fix="one of: " + ", ".join(names))
