"""What the server is told, checked before anything is loaded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from crossadapt.errors import UserError
from crossadapt.search.query_picture import Limits

LEAST_TOKEN = 16
"""Characters of the shortest token that is accepted."""
MOST_JUDGED = 64
"""Hits that one search may have judged again: each costs a run of the vision tower."""


@dataclass(frozen=True)
class Settings:
    """Limits and doors of one server.

    Raises:
        UserError: a value out of range, a weak token, or an address others can reach without one.
    """

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 7700
    """Port to listen on; 0 takes a free one."""
    token: str = ""
    """What a client has to send as ``Authorization: Bearer TOKEN``; empty asks for nothing."""
    no_token: bool = False
    """Listen on an address that others can reach although there is no token."""
    hosts: tuple[str, ...] = ()
    """Names, beside its own, under which the server may be addressed."""
    queue: int = 256
    """Searches that may be under way or waiting; further ones get 429."""
    timeout: float = 20.0
    """Seconds a search may take, its upload included."""
    max_upload: int = 16 * 2**20
    """Bytes of a search with a picture."""
    max_pixels: int = Limits.max_pixels
    """Width x height of an uploaded picture, read from its header."""
    upload_memory: int = 256 * 2**20
    """Bytes of uploads held at the same time; further ones get 429."""
    reload_seconds: float = 2.0
    """How often rebuilt collections are looked for."""
    batch_seconds: float = 0.003
    """How long the first query of a batch waits for others."""
    batch_rows: int = 64
    """Texts, or pictures, embedded in one pass."""

    def __post_init__(self) -> None:
        """Refuse what could not work or would be open by mistake."""
        if not 0 <= self.port <= 65_535:
            raise UserError(f"port is {self.port}", where="--port", fix="give 0 to 65535")
        for option, value in (
            ("queue", self.queue),
            ("timeout", self.timeout),
            ("max-upload", self.max_upload),
            ("max-pixels", self.max_pixels),
        ):
            if not 0 < value < float("inf"):
                raise UserError(
                    f"{option} is {value}", where=f"--{option}", fix="give a number above 0"
                )
        if self.token:
            _check_token(self.token)
        elif not self.no_token and not is_loopback(self.host):
            raise UserError(
                f"others can reach {self.host}, and there is no token",
                where="--host",
                fix="set CROSSADAPT_TOKEN (for example to the output of `openssl rand -hex 32`), "
                "or say --no-token if everybody who can connect may search and see the files",
            )

    @property
    def limits(self) -> Limits:
        """The largest query."""
        return Limits(max_pixels=self.max_pixels, max_bytes=self.max_upload, max_rerank=MOST_JUDGED)

    @property
    def checks_host(self) -> bool:
        """Whether the ``Host`` of a request is looked at.

        A page of another site can make its own name resolve to this server and read it with the
        visitor's browser. A token keeps it out; without one, the name has to.
        """
        return bool(self.hosts) or not self.token or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _check_token(token: str) -> None:
    # What a header can carry, and what nobody has to quote.
    if not all("!" <= character <= "~" for character in token):
        raise UserError(
            "the token has characters that a header cannot carry",
            where="--token",
            fix="use letters, digits and - . _ ~ + / =",
        )
    if len(token) < LEAST_TOKEN:
        raise UserError(
            f"the token has {len(token)} characters",
            where="--token",
            fix=f"give at least {LEAST_TOKEN}, for example the output of `openssl rand -hex 32`",
        )
