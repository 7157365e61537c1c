"""A real server over a real collection with two views, and one browser for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from tests.search.query_world import World, world
from tests.search.server.making import make_collection, serving

from crossadapt.search.collection import Collections
from crossadapt.search.server.app import create_app
from crossadapt.search.server.settings import Settings

PHONE, DESKTOP = (390, 844), (1280, 860)
TOKEN = "a-token-of-the-tests"
_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
# What a refused request leaves in the console; the tests that provoke one look at the page.
_REFUSED = "Failed to load resource"

expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def searched() -> World:
    """The collection ``emoji``, with the views ``frozen`` and ``nudged``."""
    return world()


@pytest.fixture(scope="module")
def address(searched: World) -> Iterator[str]:
    """A server that asks for nothing."""
    yield from _served(Collections(searched.store), Settings(port=0))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for `TOKEN`, over 30 and 8 shapes with the frozen view alone."""
    folder = tmp_path_factory.mktemp("plain")
    home = Collections(folder / "store")
    make_collection(home, "plain", {}, folder / "pictures", 30)
    make_collection(home, "second", {}, folder / "others", 8)
    yield from _served(home, Settings(port=0, token=TOKEN))


def _served(home: Collections, settings: Settings) -> Iterator[str]:
    app = create_app(home, home.names(), settings)
    with serving(app, settings) as where:
        yield where


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system, or the one that ``CROSSADAPT_CHROMIUM`` names."""
    chromium = Path(os.environ.get("CROSSADAPT_CHROMIUM", "/usr/bin/chromium"))
    if not chromium.is_file():
        pytest.skip(f"there is no Chromium at {chromium}; CROSSADAPT_CHROMIUM names another")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=_FLAGS.split())
        yield started
        started.close()


@dataclass
class Opened:
    """A page and everything it complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        """Keep what a developer would see in red or yellow."""
        if message.type in ("error", "warning") and _REFUSED not in message.text:
            self.complaints.append(message.text)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """``visit(url, size, theme)``: a new visitor's page; it must have no complaints at the end."""
    opened: list[Opened] = []

    def go(
        url: str, size: tuple[int, int] = DESKTOP, theme: str = "light", **options: object
    ) -> Page:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=theme,  # type: ignore[arg-type]
            has_touch=size == PHONE,
            reduced_motion="reduce",
            **options,  # type: ignore[arg-type]
        )
        context.set_default_timeout(30_000)
        context.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " (e) => console.error('CSP: ' + e.violatedDirective + ' ' + e.blockedURI))"
        )
        one = Opened(context.new_page())
        one.page.on("console", one.heard)
        one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
        opened.append(one)
        one.page.goto(url)
        return one.page

    yield go
    for one in opened:
        one.page.context.close()
    assert [one.complaints for one in opened] == [[] for _ in opened]
