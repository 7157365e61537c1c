"""``crossadapt serve``: the search page and HTTP API over collections."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from crossadapt.cli.options import parse as parse_options
from crossadapt.errors import UserError

TOKEN = "CROSSADAPT_TOKEN"
"""Environment variable of the token, which keeps it out of the list of processes."""


@dataclass(frozen=True)
class ServeOptions:
    """Serve a search page and an HTTP API over collections.

    Reachable from this machine only, unless --host says otherwise. Stops at Ctrl+C after the
    requests that are under way. Collections that are indexed meanwhile are reloaded by themselves.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Collections to serve; see crossadapt collection list."""
    store: str | None = None
    """Where the collections are: a folder or s3://bucket/path."""
    host: str = "127.0.0.1"
    """Address to listen on; another than the loopback needs a token."""
    port: int = 7700
    """Port; 0 takes a free one."""
    token: str = ""
    """What clients have to send as bearer token; safer in the environment as CROSSADAPT_TOKEN."""
    no_token: bool = False
    """Let everybody who can reach --host search and see the files."""
    allow_host: tuple[str, ...] = ()
    """Names under which a proxy or other machines address the server."""
    queue: int = 256
    """Searches under way or waiting; further ones get 429."""
    timeout: float = 20.0
    """Seconds a search may take, its upload included."""
    max_upload: int = 16 * 2**20
    """Bytes of a search with a picture."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    open: bool = False
    """Open the page in a browser."""


def parse(args: Sequence[str]) -> ServeOptions | None:
    """Options, or None when help was printed."""
    return parse_options(ServeOptions, args, "serve")


def run(options: ServeOptions) -> int:
    """Load everything, listen, and serve until interrupted."""
    import logging

    from crossadapt.search.collection import Collections
    from crossadapt.search.server.settings import Settings

    settings = Settings(
        host=options.host,
        port=options.port,
        token=options.token or os.environ.get(TOKEN, ""),
        no_token=options.no_token,
        hosts=options.allow_host,
        queue=options.queue,
        timeout=options.timeout,
        max_upload=options.max_upload,
    )
    if not options.names:
        raise UserError(
            "no collection was named",
            where="crossadapt serve",
            fix="name one; crossadapt collection list shows them",
        )
    home = Collections(options.store)
    for name in options.names:
        home.open(name)  # a wrong name is said before the port is taken and models are loaded
    from crossadapt.search.server import running
    from crossadapt.search.server.app import create_app
    from crossadapt.search.server.engines import Engines

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("crossadapt.server").setLevel(logging.INFO)
    taken = running.take_port(settings.host, settings.port)
    try:
        print(f"loading {', '.join(options.names)} …", flush=True)
        app = create_app(home, options.names, settings, Engines(options.device))
    except BaseException:
        taken.close()
        raise
    address = running.address_of(taken)

    def listening() -> None:
        print(f"{address}    Ctrl+C stops", flush=True)
        if options.open:
            import threading
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    running.run(app, settings, taken, listening)
    print("stopped")
    return 0
