from __future__ import annotations

import errno
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from crossadapt.errors import UserError
from crossadapt.evaluation import (
    Curve,
    Report,
    evaluate,
    render_report,
    retrieve_examples,
    write_report,
)
from crossadapt.evaluation.charts import line_chart
from crossadapt.evaluation.html import join, tag
from crossadapt.evaluation.metrics import RetrievalResult
from crossadapt.evaluation.svg import compact, log_ticks, ticks

EVIL = '<script>alert("x")</script> & "quotes" \'\udcff\x00'


class Checker(HTMLParser):
    """Tags properly nested; remembers elements and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.seen.append((name, dict(attributes)))
        if name not in ("meta", "img", "br", "hr"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.words.append(data)

    def all(self, name):
        return [a for n, a in self.seen if n == name]


def features(noise, items=30, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(items, 16))
    return base, base + noise * rng.normal(size=base.shape)


def full_report(**changes):
    before, after = features(2.5), features(1.2)
    groups = range(30)
    texts = [EVIL if i % 2 else f"caption {i}" for i in range(30)]
    colours = np.random.default_rng(0).integers(0, 256, (30, 3))

    def thumbnail(i):
        if i == 3:
            raise FileNotFoundError("gone")
        return Image.new("RGBA" if i % 2 else "L", (300, 200), tuple(colours[i]) if i % 2 else i)

    parts = {
        "title": EVIL,
        "subtitle": EVIL,
        "names": ("Zero-shot", EVIL),
        "before": evaluate(*before, groups, groups),
        "after": evaluate(*after, groups, groups),
        "facts": {EVIL: EVIL, "Trained parameters": 519168},
        "curves": [
            Curve(EVIL, {EVIL: [(0, 1.0), (1, float("nan")), (2, 0.5)]}, EVIL, EVIL, {EVIL: 0.7})
        ],
        "examples": retrieve_examples(before, after, groups, groups, texts),
        "thumbnails": thumbnail,
        "image_names": [EVIL] * 30,
        "ledger": [{"item": EVIL, "reason": EVIL, "stage": EVIL}],
        "leakage": {EVIL: {EVIL: [EVIL]}},
        "config": {EVIL: {EVIL: EVIL}},
        "versions": {EVIL: EVIL},
        "notes": [EVIL],
    }
    return Report(**(parts | changes))


@pytest.fixture(scope="module")
def page():
    return render_report(full_report())


def test_everything_is_escaped(page):
    checker = Checker(page)
    assert not checker.all("script")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20
    assert "\x00" not in page
    page.encode("utf-8")
    for _, attributes in checker.seen:
        assert not any(name.startswith("on") for name in attributes)


def test_nothing_is_loaded_from_elsewhere(page):
    checker = Checker(page)
    assert not checker.all("link")
    assert not checker.all("iframe")
    for _, attributes in checker.seen:
        assert "href" not in attributes
        assert attributes.get("src", "data:image/webp;base64,").startswith("data:image/webp;base64")
    assert "url(" not in page
    assert "@import" not in page
    assert not re.search(r"https?://", page)
    assert any("default-src 'none'" in m.get("content", "") for m in checker.all("meta"))


def test_accessible_structure(page):
    checker = Checker(page)
    assert checker.all("html") == [{"lang": "en"}]
    assert len(checker.all("h1")) == len(checker.all("main")) == 1
    charts = [a for a in checker.all("svg") if "aria-hidden" not in a]
    assert all(a["role"] == "img" for a in charts)
    assert len(checker.all("title")) == 1 + len(charts)
    assert all("alt" in a for a in checker.all("img"))
    assert all(a.get("scope") for a in checker.all("th"))
    assert len(checker.all("caption")) == len(checker.all("table"))
    ids = [a["id"] for _, a in checker.seen if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for a in checker.all("section")} <= set(ids)


def test_numbers_protocol_and_missing_pictures_are_stated(page):
    text = " ".join(Checker(page).words)
    report = full_report()
    assert f"{report.after.text_to_image.r1:.1f}" in text
    assert "paired permutation test" in text
    assert "Protocol pairs: 30 images, 30 texts" in text
    assert "519,168" in text
    assert "cannot be read" in text
    assert "Worst failures" in text


def test_a_report_may_hold_a_title_only_or_one_result():
    assert Checker(render_report(Report("empty"))).all("h1")
    report = full_report()
    alone = render_report(Report("one", after=report.after))
    assert "Difference" not in alone
    bare = RetrievalResult.from_dict(report.after.to_dict())
    assert "No intervals: they need the rank of every query" in render_report(
        Report("bare", before=bare, after=bare)
    )
    assert "Every input could be read" in render_report(Report("clean", ledger=[]))
    with pytest.raises(UserError, match="none after"):
        render_report(Report("wrong", before=report.after))


def test_a_loss_is_called_a_loss():
    r = full_report()
    page = render_report(Report("worse", before=r.after, after=r.before))
    assert "Adapted is clearly worse than Zero-shot" in page
    assert "pill bad" in page
    same = render_report(Report("same", before=r.after, after=r.after))
    assert "is not clearly different from" in same


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_report(Report("first"), tmp_path / "new" / "report.html")
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        write_report(Report("second"), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_markup_helpers():
    assert join("<", None, ["a", 1], tag("b", "&")) == "&lt;a1<b>&amp;</b>"
    assert tag("p", class_="x", hidden=True, title=None, data_a='"') == (
        '<p class="x" hidden data-a="&quot;"></p>'
    )


def test_axes_are_round_and_cover():
    assert ticks(0, 97) == [0, 20, 40, 60, 80, 100]
    assert ticks(3, 3)[0] <= 3 <= ticks(3, 3)[-1]
    assert log_ticks(80_000, 9e6) == [1e4, 1e5, 1e6, 1e7]
    assert log_ticks(30, 260) == [20, 50, 100, 200, 500]
    assert [compact(v) for v in (519168, 0, 0.001, 12.5, 9.2e6)] == [
        "519k",
        "0",
        "0.001",
        "12.5",
        "9.2M",
    ]


def test_a_gap_breaks_the_line_and_one_value_is_a_dot():
    gap = [(0, 1), (1, 2), (2, float("inf")), (3, 1)]
    assert line_chart(Curve("c", {"a": gap})).count("M") == 2
    assert "<circle" in line_chart(Curve("c", {"a": [(0, 1)]}))
    assert "no values were recorded" in line_chart(Curve("c", {"a": []}))
