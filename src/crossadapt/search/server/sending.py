"""Answers made of bytes: range requests, entity tags, types that a browser must not guess."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from crossadapt.search.server.failures import Failure, answer
from crossadapt.search.server.originals import BINARY, Original

_CHUNK = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_SHOWN = ("image/", "video/")


class OriginalResponse(Response):
    """An original, whole or a range of it; closed when it is sent or the client leaves.

    Args:
        original: open.
        tag: changes when the bytes do.
        name: the file name that is proposed.
        head: without the bytes.
    """

    def __init__(self, original: Original, tag: str, name: str, head: bool = False) -> None:
        self.original, self.tag, self.name, self.head = original, f'"{tag}"', name, head
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await self._send(Headers(scope=scope), scope, receive, send)
        finally:
            self.original.file.close()

    async def _send(self, asked: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        original, size = self.original, self.original.size
        headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Content-Disposition": disposition(original.media_type, self.name),
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Content-Type": original.media_type,
            "ETag": self.tag,
        }
        if matches(asked.get("if-none-match"), self.tag):
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        wanted = byte_range(asked.get("range"), size)
        if asked.get("if-range", self.tag) != self.tag:
            wanted = None
        if wanted == ():
            failure = Failure(
                416,
                f"the item has {size} bytes",
                where=f"Range: {asked.get('range', '')[:100]}",
                headers={"Content-Range": f"bytes */{size}"},
            )
            await answer(failure)(scope, receive, send)
            return
        first, last = wanted or (0, size - 1)
        headers["Content-Length"] = str(last - first + 1)
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        status = 206 if wanted else 200
        await send({"type": "http.response.start", "status": status, "headers": raw})
        rest = 0 if self.head else last - first + 1
        await anyio.to_thread.run_sync(original.file.seek, original.start + first)
        while rest > 0:
            piece = await anyio.to_thread.run_sync(original.file.read, min(rest, _CHUNK))
            if not piece:
                raise OSError("the original became shorter while it was sent")
            rest -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": rest > 0})
        if self.head or not size:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def byte_range(header: str | None, size: int) -> tuple[int, int] | tuple[()] | None:
    """First and last byte asked for, () if there are none such, None for everything.

    Several ranges, or something that cannot be read, count as everything, as RFC 9110 allows.
    """
    found = _RANGE.fullmatch((header or "").replace(" ", ""))
    if not found or found.group(0) == "bytes=-":
        return None
    start, end = found.groups()
    if not start:
        count = min(int(end), size)
        return (size - count, size - 1) if count else ()
    first = int(start)
    last = min(int(end), size - 1) if end else size - 1
    if end and int(end) < first:
        return None
    return (first, last) if first < size else ()


def matches(header: str | None, tag: str) -> bool:
    """Whether an ``If-None-Match`` names the tag."""
    names = [name.strip().removeprefix("W/") for name in (header or "").split(",")]
    return tag in names or "*" in names


def disposition(media_type: str, name: str) -> str:
    """Pictures and videos may be shown, everything else is saved."""
    how = "inline" if media_type != BINARY and media_type.startswith(_SHOWN) else "attachment"
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._- ") else "_" for c in name)[:150]
    safe = name.encode("utf-8", "replace").decode()[:150]
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(safe, safe='')}"


def bytes_answer(
    content: bytes, media_type: str, tag: str, asked: Mapping[str, str], **headers: str
) -> Response:
    """Some bytes with an entity tag, or 304 for a client that has them."""
    tag = f'"{tag}"'
    shown = {"ETag": tag, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if matches(asked.get("if-none-match"), tag):
        return Response(status_code=304, headers=shown)
    return Response(content, 200, shown, media_type)
