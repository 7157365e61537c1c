"""The search page, used as a visitor uses it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect
from tests.search.page.conftest import DESKTOP, PHONE, TOKEN
from tests.search.query_world import World

from crossadapt.data.openmoji import picture_bytes

Visit = Callable[..., Page]
SCREENS = [
    pytest.param(size, theme, id=f"{name}-{theme}")
    for name, size in (("phone", PHONE), ("desktop", DESKTOP))
    for theme in ("light", "dark")
]

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


def search(page: Page, words: str) -> None:
    """Type a query and wait for what it finds."""
    page.get_by_role("searchbox").fill(words)
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("#status")).to_contain_text("hits")
    expect(page.locator("#content")).not_to_have_attribute("aria-busy", "true")


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


@pytest.mark.parametrize(("size", "theme"), SCREENS)
def test_a_visit(
    visit: Visit,
    address: str,
    searched: World,
    tmp_path: Path,
    repo: Path,
    size: tuple[int, int],
    theme: str,
) -> None:
    page = visit(address, size, theme)
    shot = lambda name: page.screenshot(path=tmp_path / f"{name}.png")  # noqa: E731
    expect(page.get_by_role("heading", name="Search 180 items")).to_be_visible()
    expect(page.locator(".sample img.ready").nth(3)).to_be_visible()
    fits(page)
    shot("start")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 22)"
    assert dark == (theme == "dark")

    search(page, "red apple")
    assert len(ids(page)) == 24
    assert "q=red+apple" in page.url
    fits(page)
    shot("grid")

    options(page, size)
    page.locator("#compare-row").click()
    if size == PHONE:
        page.get_by_role("button", name="Close the options").click()
    expect(page.locator(".side.frozen .row")).to_have_count(24)
    expect(page.locator(".side.adapted .row")).to_have_count(24)
    fits(page)
    shot("compare")

    options(page, size)
    page.get_by_role("checkbox", name="yes").check()
    if size == PHONE:
        fits(page)
        shot("options")
        page.get_by_role("button", name="Close the options").click()
    expect(page.get_by_role("button", name="Remove the filter flag: yes")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("pass the filters")
    flags = searched.collection.get(ids(page, ".side.adapted .rows"), ["attr_flag"])
    assert set(flags.column("attr_flag").to_pylist()) == {True}

    page.locator(".side.adapted .row").first.click()
    expect(page.locator(".neighbours .card")).to_have_count(12)
    expect(page.locator(".captions li").first).to_be_visible()
    fits(page)
    shot("item")
    if (size, theme) == (DESKTOP, "light"):
        picture_for_the_documentation(visit, repo)


def picture_for_the_documentation(visit: Visit, repo: Path) -> None:
    """Renew docs/images/search-page.png, if ``CROSSADAPT_PAGE_SCREENSHOT`` asks for it.

    The variable is the address of a search on a running page, such as that of the demo:
    ``http://127.0.0.1:7700/?q=crying+face&compare=1``.
    """
    if wanted := os.environ.get("CROSSADAPT_PAGE_SCREENSHOT"):
        page = visit(wanted, DESKTOP)
        expect(page.locator("#content img.ready").nth(11)).to_be_visible()
        page.wait_for_load_state("networkidle")
        page.screenshot(path=repo / "docs" / "images" / "search-page.png")


def test_moves_are_the_ranks_of_both_lists(visit: Visit, address: str) -> None:
    page = visit(f"{address}/?q=animal+face&compare=1")
    expect(page.locator(".side.adapted .row")).to_have_count(24)
    before, after = ids(page, ".side.frozen .rows"), ids(page, ".side.adapted .rows")
    assert before != after
    said = page.locator(".side.adapted .move").evaluate_all(
        "(all) => all.map((e) => e.firstChild.textContent)"
    )
    for rank, (name, sign) in enumerate(zip(after, said, strict=True)):
        by = before.index(name) - rank if name in before else None
        expected = "new" if by is None else f"▲ {by}" if by > 0 else f"▼ {-by}" if by else "="
        assert sign == expected
    gone = page.locator(".side.frozen .move.left").count()
    assert gone == said.count("new") == len(set(before) - set(after))


def test_strength_0_is_the_frozen_model(visit: Visit, address: str) -> None:
    page = visit(f"{address}/?q=animal+face&s=0")
    expect(page.locator("#content .card")).to_have_count(24)
    blended = ids(page)
    page.get_by_role("radio", name="Frozen").check()
    expect(page.locator("#strength")).to_be_disabled()
    expect(page).to_have_url(re.compile("view=frozen"))
    expect(page.locator("#content")).not_to_have_attribute("aria-busy", "true")
    assert ids(page) == blended


def test_the_keyboard_alone(visit: Visit, address: str, searched: World) -> None:
    page = visit(address)
    expect(page.locator(".sample")).to_have_count(6)
    keys = page.keyboard
    keys.press("/")
    keys.type("crying")
    keys.press("Enter")
    expect(page.locator("#content .card")).to_have_count(24)
    found = ids(page)
    focused = "document.activeElement.parentElement.dataset.id ?? document.activeElement.id"
    keys.press("ArrowDown")
    assert page.evaluate(focused) == found[0]
    keys.press("ArrowRight")
    assert page.evaluate(focused) == found[1]
    columns = page.locator(".grid").evaluate(
        "(e) => getComputedStyle(e).gridTemplateColumns.split(' ').length"
    )
    keys.press("ArrowDown")
    assert page.evaluate(focused) == found[1 + columns]
    keys.press("End")
    assert page.evaluate(focused) == found[-1]
    keys.press("Home")
    keys.press("Enter")
    expect(page.locator("#item")).to_be_visible()
    assert f"item={found[0]}" in page.url
    keys.press("ArrowRight")
    expect(page).to_have_url(re.compile(f"item={found[1]}"))
    keys.press("Escape")
    expect(page.locator("#item")).not_to_be_visible()
    assert "item=" not in page.url
    keys.press("c")
    expect(page.locator(".side.frozen .row")).to_have_count(24)
    keys.press("c")
    expect(page.locator("#content .card")).to_have_count(24)
    keys.press("?")
    expect(page.get_by_role("dialog", name="Help")).to_be_visible()
    keys.press("Escape")
    keys.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.reload()
    expect(page.locator("#content .card")).to_have_count(24)
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_a_dropped_picture_finds_itself(visit: Visit, address: str, searched: World) -> None:
    page = visit(address)
    expect(page.locator(".sample")).to_have_count(6)
    content = list(picture_bytes("openmoji:1F34E"))
    page.evaluate(DROP, [content, "apple.png", "image/png"])
    expect(page.locator("#picture")).to_contain_text("apple.png")
    expect(page.locator("#content .card")).to_have_count(24)
    assert ids(page)[0] == searched.ids["apple"]
    expect(page.locator("#mix")).not_to_be_visible()
    search(page, "flag")
    expect(page.locator("#mix")).to_be_visible()
    page.get_by_role("button", name="Remove the picture").click()
    expect(page.locator("#picture")).not_to_be_visible()
    page.go_back()
    expect(page.locator("#picture")).to_contain_text("apple.png")


def test_what_is_no_picture_is_refused(visit: Visit, address: str) -> None:
    page = visit(address)
    expect(page.locator(".sample")).to_have_count(6)
    page.evaluate(DROP, [[1, 2, 3], "letter.pdf", "application/pdf"])
    expect(page.get_by_role("alert")).to_contain_text("That is not a picture")
    page.locator("#file").set_input_files(
        {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"%PDF-1.7 nothing"}
    )
    expect(page.get_by_role("alert")).to_contain_text("To fix it")
    assert page.locator("#content .card").count() == 0


def test_more_like_this_and_back(visit: Visit, address: str, searched: World) -> None:
    page = visit(f"{address}/?q=cat&item={searched.ids['cat']}")
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#picture")).to_contain_text("like")
    expect(page.locator("#content .card")).to_have_count(24)
    assert f"like={searched.ids['cat']}" in page.url
    assert searched.ids["cat"] not in ids(page)
    page.go_back()
    expect(page.get_by_role("searchbox")).to_have_value("cat")


def test_health(visit: Visit, address: str, searched: World) -> None:
    page = visit(f"{address}/?q=cat")
    page.get_by_role("button", name="Collection health").click()
    sheet = page.get_by_role("dialog", name="Collection emoji")
    expect(sheet).to_contain_text("180")
    expect(sheet).to_contain_text(searched.embedder.fingerprint("nudged")[:16])
    expect(sheet).to_contain_text("Every input could be read")


def test_a_wrong_filter_says_what_where_and_how(visit: Visit, address: str) -> None:
    page = visit(f"{address}/?q=cat&filter=flg+%3D+true")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("'flg'")
    expect(alert).to_contain_text("flag")
    page.get_by_role("button", name="Clear all filters").click()
    expect(page.locator("#content .card")).to_have_count(24)
    expect(alert).to_be_empty()


def test_nothing_passes(visit: Visit, address: str) -> None:
    page = visit(f"{address}/?q=cat&r.width=..3")
    expect(page.get_by_role("heading", name="Nothing passes these filters")).to_be_visible()
    page.locator("#content").get_by_role("button", name="Clear all filters").click()
    expect(page.locator("#content .card")).to_have_count(24)


def test_a_stale_answer_never_wins(visit: Visit, address: str) -> None:
    page = visit(f"{address}/?q=cat")
    expect(page.locator("#content .card")).to_have_count(24)
    cats = ids(page)
    search(page, "beach")
    beaches = ids(page)
    held: list[Route] = []
    page.route(re.compile("/search.*q=cat"), lambda route: held.append(route))
    page.get_by_role("searchbox").fill("cat")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("#content")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#slow")).to_contain_text("Still searching")
    search(page, "beach")
    for route in held:
        route.continue_()
    page.wait_for_timeout(300)
    assert ids(page) == beaches != cats
    expect(page.locator("#slow")).not_to_be_visible()


def test_a_busy_server_is_asked_again(visit: Visit, address: str) -> None:
    page = visit(f"{address}/?q=cat")
    expect(page.locator("#content .card")).to_have_count(24)
    refused: list[Route] = []

    def busy(route: Route) -> None:
        if refused:
            route.continue_()
            return
        refused.append(route)
        route.fulfill(
            status=429,
            headers={"Retry-After": "1"},
            json={"error": {"what": "too many searches are waiting", "where": "", "fix": ""}},
        )

    page.route(re.compile("/search"), busy)
    page.get_by_role("searchbox").fill("beach")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("#slow")).to_contain_text("trying again in 1 s")
    expect(page.locator("#status")).to_contain_text("24 hits")
    assert len(refused) == 1


def test_a_server_that_is_gone_and_comes_back(visit: Visit, address: str) -> None:
    page = visit(f"{address}/?q=cat")
    expect(page.locator("#content .card")).to_have_count(24)
    page.context.set_offline(True)
    page.get_by_role("searchbox").fill("beach")
    page.get_by_role("searchbox").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.context.set_offline(False)
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#status")).to_contain_text("24 hits")


def test_the_same_can_be_asked_again(visit: Visit, address: str) -> None:
    page = visit(f"{address}/?q=cat")
    expect(page.locator("#content .card")).to_have_count(24)
    with page.expect_response(re.compile("/search.*q=cat")):
        page.get_by_role("searchbox").press("Enter")


def test_a_video_plays_from_where_it_was_found(visit: Visit, address: str, tmp_path: Path) -> None:
    page = visit(address)
    expect(page.locator(".sample")).to_have_count(6)
    clip = webm(tmp_path / "clip.webm")

    def filmed(route: Route) -> None:
        answer = route.fetch().json()
        for hit in answer.get("hits", [answer]):
            hit.update(kind="video", duration=4.0)
            if "rank" in hit:
                hit["start"] = 2.5
        route.fulfill(json=answer)

    page.route(re.compile("/(search|items)"), filmed)

    def ranged(route: Route) -> None:
        start = int(re.findall(r"\d+", route.request.headers.get("range", "bytes=0-"))[0])
        there = {"Content-Range": f"bytes {start}-{len(clip) - 1}/{len(clip)}"}
        headers = {"Content-Type": "video/webm", "Accept-Ranges": "bytes", **there}
        route.fulfill(status=206, body=clip[start:], headers=headers)

    page.route(re.compile("/file/"), ranged)
    search(page, "cat")
    expect(page.locator(".badge").first).to_have_text("0:04")
    page.locator("#content .card").first.click()
    video = page.locator("#item video")
    expect(video).to_have_js_property("currentTime", 2.5)
    expect(video).to_have_js_property("paused", True)
    expect(video).to_have_attribute("controls", "")
    expect(page.locator("#item .facts")).to_contain_text("found at")


def webm(path: Path) -> bytes:
    """Four seconds of video that every Chromium plays."""
    av = pytest.importorskip("av", reason="a video is made with PyAV")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            shade = np.full((48, 64, 3), 12 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_token_ranges_and_a_collection_without_adapter(visit: Visit, guarded: str) -> None:
    page = visit(f"{guarded}/?q=a+red+circle")
    sheet = page.get_by_role("dialog", name="This server needs a token")
    sheet.get_by_label("Token").fill("not-the-right-token")
    sheet.get_by_role("button", name="Continue").click()
    expect(sheet).to_contain_text("not right")
    sheet.get_by_label("Token").fill(TOKEN)
    sheet.get_by_role("button", name="Continue").click()
    # Pictures need the token too, which an <img> cannot send.
    expect(page.locator("#content .card img.ready").first).to_be_visible()
    assert page.locator("#content .card img").first.get_attribute("src").startswith("blob:")
    expect(page.locator("#model")).not_to_be_visible()
    page.get_by_label("number, at least").fill("10")
    page.get_by_label("number, at most").fill("14")
    page.get_by_label("number, at most").press("Tab")
    expect(page.locator("#content .card")).to_have_count(5)
    expect(page.get_by_role("button", name="Remove the filter number 10–14")).to_be_visible()
    page.get_by_role("checkbox", name=re.compile("^red")).check()
    expect(page.locator("#content .card")).to_have_count(1)
    # Two values of one column are alternatives, so the other one still says how many it would add.
    page.get_by_role("checkbox", name=re.compile("^blue 1")).check()
    expect(page.locator("#content .card")).to_have_count(2)
    page.keyboard.press("c")
    expect(page.locator(".versus")).to_have_count(0)
