"""Errors as HTTP answers: always ``{"error": {"what", "where", "fix"}}``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from crossadapt.errors import UserError, did_you_mean

log = logging.getLogger("crossadapt.server")

_PHRASES = {
    404: ("there is nothing at this address", "see /openapi.json for what there is"),
    405: ("the method is not allowed here", "see /openapi.json for the methods of each address"),
}


class Failure(Exception):
    """An answer that is no success, raised anywhere below a route."""

    def __init__(
        self,
        status: int,
        what: str,
        *,
        where: str = "",
        fix: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.what, self.where, self.fix = status, what, where, fix
        self.headers = dict(headers or {})
        super().__init__(f"{status}: {what}")


@contextmanager
def asked() -> Iterator[None]:
    """Inside, a `UserError` is about what the client sent: 422."""
    try:
        yield
    except UserError as error:
        raise Failure(422, error.what, where=error.where, fix=error.fix) from error


@contextmanager
def stored() -> Iterator[None]:
    """Inside, a `UserError` is about the collection on the disk: 503, and details in the log."""
    try:
        yield
    except UserError as error:
        log.error("a collection cannot be read: %s", error)
        raise Failure(
            503,
            "the collection cannot be read at the moment",
            fix="try again shortly; the server's log has the details",
            headers={"Retry-After": "2"},
        ) from error


def answer(failure: Failure) -> Response:
    """The response to a failure."""
    error = {"what": failure.what, "where": failure.where, "fix": failure.fix}
    # Half a surrogate pair, echoed from a query, cannot be sent as UTF-8; ASCII escapes can.
    body = json.dumps({"error": error}).encode("ascii")
    return Response(body, failure.status, failure.headers, "application/json")


def invalid(errors: list[Any], known: Mapping[str, Any]) -> Failure:
    """The failure for what pydantic found wrong with parameters; the first one is told.

    Args:
        errors: its list.
        known: parameters there are.
    """
    first = errors[0]
    name = str(first["loc"][-1]) if first["loc"] else ""
    more = f" ({len(errors) - 1} more are wrong)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        return Failure(
            422, f"unknown parameter{more}", where=name[:100], fix=did_you_mean(name, known)
        )
    said = str(first["msg"])
    return Failure(422, f"{name[:100]}: {said[:1].lower()}{said[1:]}{more}", where=name[:100])


def add_handlers(app: FastAPI) -> None:
    """Answer every known kind of error in the one shape."""

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, Failure)  # registered for nothing else
        return answer(error)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what, fix = _PHRASES.get(error.status_code, (str(error.detail), ""))
        where = f"{request.method} {request.url.path[:200]}"
        return answer(Failure(error.status_code, what, where=where, fix=fix, headers=error.headers))

    async def wrong(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        route = request.scope.get("route")
        dependant = getattr(route, "dependant", None)
        known = _parameters(dependant) if dependant else {}
        return answer(invalid(list(error.errors()), known))

    app.add_exception_handler(Failure, failed)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, wrong)


def _parameters(dependant: Any) -> dict[str, Any]:
    """Names of the query parameters of a route, those inside a model too."""
    found: dict[str, Any] = {}
    for field in dependant.query_params:
        model = getattr(field.field_info.annotation, "model_fields", None)
        found |= dict(model) if model else {field.alias: field}
    return found
