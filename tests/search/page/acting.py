"""What a visitor does, for the tests of the page."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Page, expect
from tests.search.page.conftest import PHONE

Visit = Callable[..., Page]
UNLABELLED = """() => [...document.querySelectorAll("input, select, textarea, button, a, dialog")]
  .filter((e) => !(e.labels?.length && [...e.labels].some((l) => l.textContent.trim())))
  .filter((e) => !e.getAttribute("aria-label") && !e.hasAttribute("aria-labelledby"))
  .filter((e) => !(["BUTTON", "A"].includes(e.tagName) && e.textContent.trim()))
  .map((e) => e.outerHTML.slice(0, 120))"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
DROP = """([bytes, name, type]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(
      new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""


PASTE = """([bytes, name, type]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type }));
  document.body.dispatchEvent(
    new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
}"""


def search(page: Page, words: str) -> None:
    """Type a query and wait for what it finds."""
    page.get_by_role("searchbox").fill(words)
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("#status")).to_contain_text("hits")
    idle(page)


def idle(page: Page) -> None:
    """Wait for the answer to what was asked last."""
    expect(page.locator("#content")).not_to_have_attribute("aria-busy", "true")


def closed(page: Page) -> None:
    """Wait until the item is closed: the step back in the history takes its time."""
    expect(page.locator("#item")).not_to_be_visible()
    expect(page).not_to_have_url(re.compile("item="))


def ids(page: Page, where: str = "#content .grid") -> list[str]:
    """Ids of the hits shown, in order."""
    return page.locator(f"{where} > .cell").evaluate_all("(all) => all.map((e) => e.dataset.id)")


def options(page: Page, size: tuple[int, int]) -> None:
    """Open the drawer with the options, where it is one."""
    if size == PHONE:
        page.get_by_role("button", name="Options").click()


def fits(page: Page) -> None:
    """Nothing to scroll sideways, nothing without a name."""
    assert page.evaluate(OVERFLOW) <= 0
    assert page.evaluate(UNLABELLED) == []
