"""The ASGI application: routes, errors, guard, start and stop.

app = create_app(Collections("shop/"), ["shoes"])      # any ASGI server can run it
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from crossadapt.errors import UserError
from crossadapt.search.collection import Collections
from crossadapt.search.server import pages, routes_info, routes_items, routes_search
from crossadapt.search.server.engines import Engines
from crossadapt.search.server.failures import add_handlers
from crossadapt.search.server.guard import Guard
from crossadapt.search.server.settings import Settings
from crossadapt.search.server.state import State

_ABOUT = """Search pictures by text, by picture, or by both, with a frozen vision-language model
and any number of adapters on it. Every answer that is no success is
`{"error": {"what", "where", "fix"}}`."""


def create_app(
    home: Collections,
    names: Sequence[str],
    settings: Settings | None = None,
    engines: Engines | None = None,
) -> FastAPI:
    """A server for some collections, with their models loaded and warm.

    Args:
        home: where the collections are.
        names: those to serve, at least one.
        settings: limits and doors; the defaults unless given.
        engines: the models; loaded as the collections need them unless given.

    Raises:
        UserError: there is no such collection, or its model is gone or another.
    """
    if not names:
        raise UserError("no collection was named", fix="name one; crossadapt collection list")
    settings = settings or Settings()
    state = State(home, names, settings, engines)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state.start()
        try:
            yield
        finally:
            await state.close()

    app = FastAPI(
        title="crossadapt",
        version=version("crossadapt"),
        description=_ABOUT,
        docs_url=None,  # its pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.server = state
    for routes in (routes_search.routes, routes_items.routes, routes_info.routes):
        app.include_router(routes)
    app.include_router(pages.router(pages.page_files()))
    add_handlers(app)
    app.add_middleware(Guard, settings=settings, metrics=state.metrics)
    if settings.token:
        _describe_token(app)
    return app


def _describe_token(app: FastAPI) -> None:
    """Say in /openapi.json that everything but /health needs the token."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        schema = plain()
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        schema["paths"]["/health"]["get"]["security"] = []
        return schema

    app.openapi = described  # type: ignore[method-assign]
