"""Run the application: take the port, listen, stop without dropping a request."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from crossadapt.errors import UserError
from crossadapt.search.server.settings import Settings

_CONNECTIONS = 2048
"""Open connections, above which further ones are turned away."""
_BACKLOG = 2048
_HEADER_BYTES = 64 * 1024


def take_port(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; a program that listens on the port is found out.

    Raises:
        UserError: the port is in use, or the address is not one of this machine.
    """
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"there is no address {host!r}", where="--host", fix="give an address of this machine"
        ) from error
    taken = socket.socket(family, kind, protocol)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise _in_use(host, port) from error
        raise UserError(
            f"cannot listen: {error.strerror or error}",
            where=where,
            fix="give an address of this machine and a port you may use (1024 or above)",
        ) from error
    return taken


def _in_use(host: str, port: int) -> UserError:
    return UserError(
        f"port {port} is in use",
        where=f"{host}:{port}",
        fix="stop the program that has it, or give another --port; 0 takes a free one",
    )


def listen(taken: socket.socket) -> None:
    """Begin to listen.

    Raises:
        UserError: another program that had bound the port too, while neither listened, was faster.
    """
    try:
        taken.listen(_BACKLOG)
    except OSError as error:
        raise _in_use(*taken.getsockname()[:2]) from error


def address_of(taken: socket.socket) -> str:
    """The address to type into a browser."""
    host, port = taken.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """uvicorn that says when it listens."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_start()


def make_server(
    app: FastAPI, settings: Settings, on_start: Callable[[], None] = lambda: None
) -> Server:
    """A server for `app`; ``run(sockets=[take_port(...)])`` runs it until it is told to stop."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        http="h11",
        lifespan="on",
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.timeout) + 5,
        proxy_headers=False,
    )
    return Server(config, on_start)


def run(
    app: FastAPI, settings: Settings, taken: socket.socket, on_start: Callable[[], None]
) -> None:
    """Serve until interrupted; requests that are under way are finished."""

    def stopped(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    listen(taken)
    # uvicorn stops at these two, and raises them again for whoever handled them before.
    before = signal.signal(signal.SIGTERM, stopped)
    try:
        make_server(app, settings, on_start).run(sockets=[taken])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        taken.close()
