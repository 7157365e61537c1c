"""A search with a picture: multipart bodies are counted while they arrive, not after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from crossadapt.search.server.admission import GONE
from crossadapt.search.server.failures import Failure

MAX_FIELDS = 24
"""Fields of a form, more than a search has."""
_FIELD_BYTES = 64 * 1024
_HEADER_BYTES = 4096
_DRAIN_SECONDS = 2.0


@dataclass(frozen=True)
class Form:
    """What a client sent."""

    fields: dict[str, str]
    image: bytes | None
    filename: str


async def read_form(request: Request, most: int, arrived: Callable[[int], None]) -> Form:
    """Read ``multipart/form-data`` with at most one file, named ``image``.

    Args:
        request: nothing of its body has been read.
        most: bytes of the whole body.
        arrived: told the size of every piece; what it raises ends the reading.

    Raises:
        Failure: 413 too large, 415 another type, 400 malformed, 422 not what a search is.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise Failure(
            415,
            "a search with POST is a form",
            where=f"Content-Type: {kind.decode('latin-1')[:80]}",
            fix="send multipart/form-data, for example curl -F image=@picture.jpg",
        )
    parts = _Parts()
    try:
        parser = python_multipart.MultipartParser(options.get(b"boundary", b""), parts.callbacks())
        async for piece in _counted(request, most, arrived):
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise _malformed("it is not multipart/form-data as its boundary says") from error
    except ClientDisconnect:
        raise Failure(GONE, "the client went away") from None
    if not parts.complete:
        raise _malformed("it ends before its last boundary")
    return _form(parts.done)


@dataclass
class _Part:
    """One part while it arrives."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    content: bytearray = field(default_factory=bytearray)


class _Parts:
    """Collects what the parser calls back."""

    def __init__(self) -> None:
        self.done: list[_Part] = []
        self.complete = False
        self._header = self._value = b""

    def callbacks(self) -> Any:
        """What python_multipart calls, by its names."""
        names = ("part_begin", "part_data", "header_field", "header_value", "header_end")
        found = {f"on_{name}": getattr(self, f"_{name}") for name in names}
        return {**found, "on_headers_finished": self._headers_finished, "on_end": self._end}

    def _part_begin(self) -> None:
        if len(self.done) >= MAX_FIELDS:
            raise _malformed(f"it has more than {MAX_FIELDS} fields")
        self.done.append(_Part())

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._short(self._header)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._short(self._value)

    def _short(self, text: bytes) -> None:
        if len(text) > _HEADER_BYTES:
            raise _malformed("a header in it is too long")

    def _header_end(self) -> None:
        self.done[-1].headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        part = self.done[-1]
        _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise _malformed("a part of it has no name")
        part.name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            part.filename = options[b"filename"].decode("utf-8", "replace")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.done[-1]
        part.content += data[start:end]
        if part.filename is None and len(part.content) > _FIELD_BYTES:
            raise Failure(413, "the field is too long", where=part.name[:100], fix="shorten it")

    def _end(self) -> None:
        self.complete = True


def _form(parts: list[_Part]) -> Form:
    fields: dict[str, str] = {}
    image: bytes | None = None
    filename = ""
    seen: set[str] = set()
    for part in parts:
        name = part.name
        if name in seen:
            raise Failure(422, "the field occurs twice", where=name[:100], fix="send it once")
        seen.add(name)
        if part.filename is not None and name != "image":
            raise Failure(422, "unknown file", where=name[:100], fix="name the field 'image'")
        if name != "image":
            fields[name] = part.content.decode("utf-8", "replace")
        elif part.filename or (part.filename is not None and part.content):
            image, filename = bytes(part.content), part.filename
        elif part.content:
            raise Failure(
                422,
                "the picture is sent as text",
                where="image",
                fix="send it as a file, with a file name; addresses are not fetched",
            )
        # An empty field without a file name is what a browser sends for "no file chosen".
    return Form(fields, image, filename)


async def _counted(
    request: Request, most: int, arrived: Callable[[int], None]
) -> AsyncIterator[bytes]:
    """The pieces of the body, until they are too many."""
    length = request.headers.get("content-length", "")
    stream = request.stream()
    total = 0
    if length.isascii() and length.isdigit() and int(length) > most:
        await _drain(stream, most)
        raise _too_large(most)
    async for piece in stream:
        total += len(piece)
        if total > most:
            await _drain(stream, most)
            raise _too_large(most)
        arrived(len(piece))
        yield piece


async def _drain(stream: AsyncIterator[bytes], most: int) -> None:
    """Read on for a moment without keeping anything.

    A client that is still sending when the connection closes does not see the answer.
    """
    total = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for piece in stream:
                total += len(piece)
                if total > most:
                    return
    except (TimeoutError, ClientDisconnect):
        return


def _malformed(why: str) -> Failure:
    return Failure(400, f"the form cannot be read: {why}", where="body", fix="send it again")


def _too_large(most: int) -> Failure:
    return Failure(
        413,
        f"the upload is larger than {most:,} bytes",
        where="image",
        fix="send a smaller copy; models look at a few hundred pixels a side",
        headers={"Connection": "close"},
    )
