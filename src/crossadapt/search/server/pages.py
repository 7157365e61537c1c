"""The search page: a fixed list of files, read when the server starts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.responses import Response

from crossadapt.search.server.failures import Failure
from crossadapt.search.server.guard import PAGE_POLICY
from crossadapt.search.server.sending import bytes_answer

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
"""Suffixes of files that belong to the page; others in its folder are not served."""
START = "index.html"


@dataclass(frozen=True)
class PageFile:
    """One file of the page."""

    content: bytes
    media_type: str
    tag: str


def page_files(folder: Traversable | None = None) -> dict[str, PageFile]:
    """The page's files by path below ``/page/``; none when there is no page."""
    found: dict[str, PageFile] = {}

    def walk(place: Traversable, above: str) -> None:
        for entry in sorted(place.iterdir(), key=lambda entry: entry.name):
            name = above + entry.name
            if entry.is_dir():
                walk(entry, f"{name}/")
            elif kind := TYPES.get("." + entry.name.rpartition(".")[2].lower()):
                content = entry.read_bytes()
                found[name] = PageFile(content, kind, hashlib.sha256(content).hexdigest()[:32])

    start = folder if folder is not None else files("crossadapt.search") / "page"
    if start.is_dir():
        walk(start, "")
    return found


def router(found: dict[str, PageFile]) -> APIRouter:
    """Routes to the page: ``/`` and ``/page/NAME``."""
    routes = APIRouter(include_in_schema=False)

    def send(request: Request, name: str) -> Response:
        file = found.get(name)  # a look-up in a list: the request's path never names a file
        if file is None:
            raise Failure(404, "there is no such file of the page", where=request.url.path[:200])
        return bytes_answer(
            file.content,
            file.media_type,
            file.tag,
            request.headers,
            # Asked for again each time and answered with 304, so that an update shows at once.
            Cache_Control="no-cache",
            Content_Security_Policy=PAGE_POLICY,
        )

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def start(request: Request) -> Response:
        """The page."""
        return send(request, START)

    @routes.api_route("/page/{name:path}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        """A file of the page."""
        return send(request, name)

    return routes
