"""The switch of the second stage: there where the model can judge, and asked for only then."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from tests.adapting import train
from tests.search.page.acting import Visit, closed, fits, idle, ids, options
from tests.search.page.conftest import DESKTOP, PHONE, _served
from tests.search.server.making import make_collection

import crossadapt
from crossadapt.adapters.registry import make_config
from crossadapt.search.collection import Collections
from crossadapt.search.server.settings import Settings

WORDS = "a red square"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over ``pairs``, embedded by a BLIP with an adapter, and ``plain`` by a CLIP."""
    folder: Path = tmp_path_factory.mktemp("rerank-page")
    backbone = crossadapt.load("tiny:blip")
    attached = crossadapt.attach(backbone, make_config("uniadapter", {"r": 4, "init": "released"}))
    train(backbone, attached, steps=3)
    adapter = crossadapt.save_adapter(backbone, "default", folder / "adapter")
    home = Collections(folder / "store")
    make_collection(home, "pairs", {"u": adapter}, folder / "a", 30, backbone="tiny:blip")
    make_collection(home, "plain", {}, folder / "b", 8)
    yield from _served(home, Settings(port=0))


def switch(page: Page):
    return page.get_by_role("switch", name="Re-rank the first 24")


def found(address: str, **fields: object) -> list[str]:
    asked = {"collection": "pairs", "q": WORDS, "view": "u", "k": 24, **fields}
    answer = httpx.get(f"{address}/search", params=asked, trust_env=False, timeout=60)
    return [hit["id"] for hit in answer.raise_for_status().json()["hits"]]


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_switch_re_ranks_and_is_part_of_the_link(visit: Visit, two: str, size) -> None:
    page = visit(f"{two}/?c=pairs&view=u&q={WORDS}", size)
    expect(page.locator("#content .card")).to_have_count(24)
    plain, wanted = found(two), found(two, rerank=24)
    assert ids(page) == plain != wanted
    options(page, size)
    expect(switch(page)).not_to_be_checked()
    fits(page)
    with page.expect_response(re.compile("/search.*rerank=24")):
        switch(page).press("Space")
    expect(switch(page)).to_be_checked()
    idle(page)
    expect(page.locator("#status")).to_contain_text("24 re-ranked in")
    assert ids(page) == wanted
    if size == PHONE:
        page.get_by_role("button", name="Close the options").click()
    page.locator("#content .card").first.click()
    expect(page.locator("#item .facts")).to_contain_text("match")
    page.keyboard.press("Escape")
    closed(page)
    expect(page).to_have_url(re.compile("rerank=1"))
    page.reload()
    expect(page.locator("#status")).to_contain_text("24 re-ranked in")
    assert ids(page) == wanted


def test_it_says_why_it_cannot_and_is_not_asked_for(visit: Visit, two: str) -> None:
    page = visit(f"{two}/?c=pairs&view=u&q={WORDS}&rerank=1")
    expect(page.locator("#status")).to_contain_text("24 re-ranked in")
    judged = ids(page)
    about = page.locator("#rerank-about")
    expect(about).to_contain_text("Slower")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def refused(why: str) -> None:
        expect(about).to_have_text(why)
        expect(switch(page)).to_be_disabled()
        expect(switch(page)).not_to_be_checked()
        idle(page)
        expect(page.locator("#status")).not_to_contain_text("re-ranked")

    page.locator("#compare-row").click()
    refused("Not with before and after.")
    page.locator("#compare-row").click()
    page.get_by_role("textbox", name="Exclude words").fill("blue")
    refused("Not while words are excluded.")
    page.get_by_role("textbox", name="Exclude words").fill("")
    expect(about).to_contain_text("Slower")
    page.locator("#strength").press("Home")
    refused("Not with a part of the adapter.")
    page.locator("#strength").press("End")
    # What was in the way is gone: what was asked for is back.
    expect(page.locator("#status")).to_contain_text("24 re-ranked in")
    assert ids(page) == judged
    page.goto(f"{two}/?c=pairs&q=x&like={judged[0]}&rerank=1")
    expect(page.locator("#content .card").first).to_be_visible()
    refused("Not with a picture: it judges words.")
    searches = [url for url in asked if "/search?" in url]
    for other in ("compare=", "exclude=", "strength=", "like="):
        mine = [url for url in searches if other in url]
        assert mine
        assert not any("rerank=" in url for url in mine)


def test_a_model_that_cannot_judge_has_no_switch(visit: Visit, two: str) -> None:
    page = visit(f"{two}/?c=plain&q={WORDS}&rerank=1")
    expect(page.locator("#content .card")).to_have_count(8)
    expect(page.locator("#second")).not_to_be_visible()
    expect(page.locator("#status")).not_to_contain_text("re-ranked")
    page.get_by_role("combobox", name="Collection").select_option("pairs")
    expect(switch(page)).to_be_visible()
    expect(switch(page)).not_to_be_checked()


def test_the_frozen_view_is_described_by_what_is_true_of_every_model(
    visit: Visit, two: str
) -> None:
    """A model may have been resized, so nothing is said of how it came."""
    page = visit(f"{two}/?c=pairs")
    expect(page.locator(".view.frozen")).to_contain_text("The model without an adapter")
    page.get_by_role("button", name="Collection health").click()
    row = page.get_by_role("dialog", name="Collection pairs").get_by_role("row", name="Frozen")
    expect(row).to_contain_text("no adapter")
