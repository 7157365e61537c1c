"""Take the picture of the search page that stands in the README.

Serves the collection of a demo on a free port of this machine, opens the page in Chromium, asks a
query with "before and after", and writes what a visitor sees. Needs the `test` extra (playwright)
and a Chromium of the system.

Usage: python scripts/page_picture.py [--demo runs/demo] [--query "..."] [--output FILE]
                                      [--width 1280] [--height 800] [--theme light|dark] [--single]

`crossadapt demo --no-serve` makes the demo.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import expect, sync_playwright

from crossadapt.cli.demo import COLLECTION
from crossadapt.search.collection import Collections
from crossadapt.search.server.app import create_app
from crossadapt.search.server.running import address_of, make_server, take_port
from crossadapt.search.server.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 400_000
"""Bytes; a README should open quickly."""


@contextmanager
def served(store: Path) -> Iterator[str]:
    """The address of the page over the demo's collection."""
    settings = Settings(port=0)
    app = create_app(Collections(store), [COLLECTION], settings)
    taken, listens = take_port("127.0.0.1", 0), threading.Event()
    server = make_server(app, settings, listens.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    thread.start()
    try:
        listens.wait(60)
        yield address_of(taken)
    finally:
        server.should_exit = True
        thread.join()
        taken.close()


def chromium() -> str:
    """Where the browser is."""
    found = os.environ.get("CROSSADAPT_CHROMIUM") or shutil.which("chromium")
    if not found:
        raise SystemExit("error: no Chromium found; CROSSADAPT_CHROMIUM names one")
    return found


def take(address: str, options: argparse.Namespace) -> None:
    """Open the page, wait until every picture in sight is there, and write what it shows."""
    asked = {"q": options.query} | ({} if options.single else {"compare": "1"})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": options.width, "height": options.height},
            color_scheme=options.theme,
            reduced_motion="reduce",
            device_scale_factor=options.scale,
        )
        page.set_default_timeout(60_000)
        page.goto(f"{address}/?{urlencode(asked)}" if options.query else address)
        images = page.locator("#content img")
        expect(images.nth(11)).to_be_attached(timeout=60_000)
        page.wait_for_function(
            "() => [...document.querySelectorAll('#content img')].every((image) =>"
            " image.getBoundingClientRect().top > innerHeight || image.matches('.ready'))"
        )
        page.wait_for_load_state("networkidle")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=options.output)
        browser.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--query", default="spider")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "search.png")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    parser.add_argument("--single", action="store_true", help="one list, not before and after")
    options = parser.parse_args()
    store = options.demo / "collections"
    if not store.is_dir():
        raise SystemExit(f"error: no demo in {options.demo}; crossadapt demo --no-serve makes one")
    with served(store) as address:
        take(address, options)
    size = options.output.stat().st_size
    print(f"{options.output}: {size:,} bytes")
    if size > LARGEST:
        print(f"error: more than {LARGEST:,} bytes; take a smaller window", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
