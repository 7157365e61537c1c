"""What stands before every route: who may ask, under which name, and what every answer carries."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
import time
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossadapt.search.server.failures import Failure, answer
from crossadapt.search.server.metrics import Metrics
from crossadapt.search.server.settings import Settings, is_loopback

log = logging.getLogger("crossadapt.server")

OPEN = ("/", "/health")
"""Paths that need no token: the page has to be there to ask for it, and a probe has none."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_POLICY = "default-src 'none'; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware: host name, token, headers, metrics, and the last word on exceptions."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._token = settings.token.encode()
        self._names = _names(settings) if settings.checks_host else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _dress(MutableHeaders(scope=message))
            await send(message)

        try:
            await self._answer(scope, receive, dressed)
        except Exception:
            number = uuid.uuid4().hex[:12]
            log.exception("error %s: %s %s", number, scope["method"], scope["path"])
            if status:
                raise  # half an answer is out: closing the connection is all that is left
            await answer(
                Failure(
                    500,
                    "the server made a mistake",
                    where=f"error {number}",
                    fix="report it with this number; the server's log has the details",
                )
            )(scope, receive, dressed)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.request(scope["method"], route, status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope, Headers(scope=scope))
        except Failure as failure:
            await answer(failure)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = _host_name(headers.get("host", ""))
        if self._names is not None and not _allowed(host, self._names):
            raise Failure(
                421,
                "this server does not answer to that name",
                where=f"Host: {headers.get('host', '')[:100]}",
                fix="use the address it printed, or start it with --allow-host NAME",
            )
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD"):
            named = _host_name(urlsplit(origin).netloc if "://" in origin else "")
            if named != host and named not in (self._names or ()):
                raise Failure(
                    403, "pages of other sites may not search here", where=f"Origin: {origin[:100]}"
                )
        path = scope["path"]
        if self._token and path not in OPEN and not path.startswith("/page/"):
            kind, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token)
            if kind.lower() != "bearer" or not right:
                raise Failure(
                    401,
                    "a token is needed" if not given else "the token is not right",
                    where="Authorization",
                    fix="send Authorization: Bearer TOKEN, with the token the server was given",
                    headers={"WWW-Authenticate": "Bearer"},
                )


def _dress(headers: MutableHeaders) -> None:
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Content-Security-Policy", _POLICY)
    headers.setdefault("Cache-Control", "no-store")


def _names(settings: Settings) -> frozenset[str]:
    """Names under which the server may be addressed, lower case; IP addresses are checked apart."""
    own = {"localhost", *settings.hosts, settings.host}
    if not is_loopback(settings.host):
        own |= {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower().rstrip(".").strip("[]") for name in own if name)


def _host_name(host: str) -> str:
    """The name in a ``Host`` header, without port and brackets, lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _allowed(host: str, names: frozenset[str]) -> bool:
    if host in names:
        return True
    try:
        # A name is what rebinding needs; who typed an address means this machine.
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
