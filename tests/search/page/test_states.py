"""What the page does when something is wrong, slow, guarded or moving."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Route, expect
from tests.search.page.acting import DROP, Visit, ids, search
from tests.search.page.conftest import TOKEN


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
            headers={"Retry-After": "2"},
            json={"error": {"what": "too many searches are waiting", "where": "", "fix": ""}},
        )

    page.route(re.compile("/search"), busy)
    page.get_by_role("searchbox").fill("beach")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("#slow")).to_contain_text("trying again in")
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


def test_token_ranges_and_collections_without_adapter(visit: Visit, guarded: str) -> None:
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
    page.get_by_role("combobox", name="Collection").select_option("second")
    expect(page.locator("#content .card")).to_have_count(8)
    expect(page).to_have_url(re.compile("c=second"))
    expect(page.locator("#chips")).not_to_be_visible()
