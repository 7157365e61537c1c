"""The search page, used as a visitor uses it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from tests.search.page.acting import DROP, PASTE, Visit, closed, fits, idle, ids, options, search
from tests.search.page.conftest import DESKTOP, PHONE
from tests.search.query_world import World

from crossadapt.data.openmoji import picture_bytes

SCREENS = [
    pytest.param(size, theme, id=f"{name}-{theme}")
    for name, size in (("phone", PHONE), ("desktop", DESKTOP))
    for theme in ("light", "dark")
]


@pytest.mark.parametrize(("size", "theme"), SCREENS)
def test_a_visit(
    visit: Visit,
    address: str,
    searched: World,
    tmp_path: Path,
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
    # Every item has a code point of its own: nothing to tick, also not where few are left.
    expect(page.locator("#facets legend")).to_have_text(["flag"])
    flags = searched.collection.get(ids(page, ".side.adapted .rows"), ["attr_flag"])
    assert set(flags.column("attr_flag").to_pylist()) == {True}

    page.locator(".side.adapted .row").first.click()
    expect(page.locator(".neighbours .card")).to_have_count(12)
    expect(page.locator(".captions li").first).to_be_visible()
    fits(page)
    shot("item")

    keys = page.keyboard
    keys.press("Escape")
    closed(page)
    keys.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    keys.press("ControlOrMeta+A")
    keys.type("cat")
    keys.press("Enter")
    expect(page).to_have_url(re.compile("q=cat"))
    idle(page)
    keys.press("ArrowDown")  # from the box to the first hit, where a letter is a command
    keys.press("c")
    expect(page.locator("#content .grid .card")).to_have_count(len(flags))

    page.goto(address)
    expect(page.locator(".sample").first).to_be_visible()
    content = list(picture_bytes("openmoji:1F34E"))
    page.evaluate(DROP, [content, "apple.png", "image/png"])
    expect(page.locator("#picture")).to_contain_text("apple.png")
    expect(page.locator("#content .card")).to_have_count(24)
    assert ids(page)[0] == searched.ids["apple"]
    fits(page)
    shot("picture")


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
    page = visit(f"{address}/?q=animal+face")
    expect(page.locator("#content .card")).to_have_count(24)
    adapted = ids(page)
    page.locator("#strength").press("Home")
    expect(page.locator("#strength-value")).to_have_text("0%")
    expect(page).to_have_url(re.compile("s=0"))
    idle(page)
    blended = ids(page)
    assert blended != adapted
    page.get_by_role("radio", name="Frozen").check()
    expect(page.locator("#strength")).to_be_disabled()
    expect(page).to_have_url(re.compile("view=frozen"))
    idle(page)
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
    closed(page)
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
    keys.press("/")
    keys.press("ArrowDown")
    keys.press("m")
    expect(page).to_have_url(re.compile(f"like={found[0]}"))


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


def test_a_pasted_picture_finds_itself(visit: Visit, address: str, searched: World) -> None:
    page = visit(f"{address}/?q=beach")
    expect(page.locator("#content .card")).to_have_count(24)
    page.get_by_role("searchbox").fill("")
    expect(page.locator(".sample")).to_have_count(6)
    page.evaluate(PASTE, [list(picture_bytes("openmoji:1F431")), "cat.png", "image/png"])
    expect(page.locator("#picture")).to_contain_text("cat.png")
    expect(page.locator("#content .cell").first).to_have_attribute("data-id", searched.ids["cat"])


def test_more_like_this_and_back(visit: Visit, address: str, searched: World) -> None:
    page = visit(f"{address}/?q=cat&item={searched.ids['cat']}")
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#picture")).to_contain_text("like")
    idle(page)
    assert len(ids(page)) == 24
    assert f"like={searched.ids['cat']}" in page.url
    assert searched.ids["cat"] not in ids(page)
    page.go_back()
    expect(page.get_by_role("searchbox")).to_have_value("cat")


def test_excluded_words_and_more_hits(visit: Visit, address: str) -> None:
    page = visit(f"{address}/?q=animal")
    expect(page.locator("#content .card")).to_have_count(24)
    first = ids(page)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#content .card")).to_have_count(48)
    assert ids(page)[:24] == first
    page.get_by_role("textbox", name="Exclude words").fill("cat")
    expect(page.get_by_role("button", name="Remove the filter without: cat")).to_be_visible()
    idle(page)
    expect(page).to_have_url(re.compile("not=cat"))
    assert ids(page)[:24] != first


def test_health(visit: Visit, address: str, searched: World) -> None:
    page = visit(f"{address}/?q=cat")
    page.get_by_role("button", name="Collection health").click()
    sheet = page.get_by_role("dialog", name="Collection emoji")
    expect(sheet).to_contain_text("180")
    expect(sheet).to_contain_text(searched.embedder.fingerprint("nudged")[:16])
    expect(sheet).to_contain_text("Every input could be read")
