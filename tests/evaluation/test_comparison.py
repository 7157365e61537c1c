from __future__ import annotations

import builtins
import io
import json

import pytest
from PIL import Image

from crossadapt.errors import UserError
from crossadapt.evaluation import ComparisonRow, write_comparison
from crossadapt.evaluation.comparison import Comparison, to_html, to_markdown

R1, I1 = "text_to_image.r1", "image_to_text.r1"


def rows():
    return [
        ComparisonRow("zero-shot", {I1: [5.0], R1: [5.4]}, 0, 0.0),
        ComparisonRow(
            "cross-modal-adapter",
            {I1: [15, 16, 17], R1: [16.0, 17.0, 15.0]},
            519168,
            0.0034,
            [160.0, 170, 165],
            [1200.0, 1210, 1205],
        ),
        ComparisonRow(
            "a|b <script> $x$",
            {I1: [14, 15, 16], R1: [14.0, 15.0, 16.0]},
            2_000_000,
            0.2,
            [60.0, 61, 62],
            [900.0, 901, 902],
        ),
    ]


def test_four_files_say_the_same(tmp_path):
    paths = write_comparison(rows(), tmp_path / "out", title="Three ways", notes=["a note"])
    assert sorted(paths) == ["html", "json", "md", "png"]
    record = json.loads(paths["json"].read_text())
    assert record["protocol"] == "pairs"
    found = record["rows"][1]["metrics"][R1]
    assert found["values"] == [16, 17, 15]
    assert found["estimate"] == 16
    assert found["low"] == pytest.approx(16 - 4.3027 / 3**0.5, abs=1e-3)
    assert record["rows"][0]["seconds"] is None
    assert record["rows"][0]["metrics"][R1]["low"] is None
    markdown = paths["md"].read_text()
    assert "| cross-modal-adapter | 16.0 [13.5, 18.5] |" in markdown
    assert "519k | 0.34 % | 165 | 1,205 MB |" in markdown
    assert "mean over 3 seeds" in markdown
    assert "a note" in markdown
    assert r"a\|b" in markdown
    page = paths["html"].read_text()
    assert page.count("<figure") == 3
    assert "<script" not in page
    assert "zero-shot 5.4" in page
    picture = Image.open(io.BytesIO(paths["png"].read_bytes()))
    assert picture.width > 3 * 600


def test_headline_metric_comes_first():
    assert Comparison(rows()).metrics == [R1, I1]
    assert to_markdown(Comparison(rows(), headline=I1)).startswith("| Method | Image → text R@1 |")


def test_without_costs_there_is_no_plot():
    only = Comparison(rows()[:1])
    assert "<figure" not in to_html(only)
    assert "one seed, so no interval" in to_markdown(only)


def test_without_matplotlib_the_rest_is_written_and_the_fix_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'crossadapt\[report\]'"):
        write_comparison(rows(), tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".html", ".json", ".md"]


def test_inconsistent_rows_are_named():
    row = rows()[1]
    for bad, message in (
        ([], "nothing to compare"),
        ([row, row], "same name"),
        ([ComparisonRow("m", {"r1": [1.0]}, 1, 0.1)], "unknown metric 'r1'"),
        ([row, ComparisonRow("m", {R1: [1.0]}, 1, 0.1)], "not measured by the same"),
        ([ComparisonRow("m", {R1: []}, 1, 0.1)], "one value per seed"),
        ([ComparisonRow("m", {R1: [1.0], I1: [1.0, 2.0]}, 1, 0.1)], "one value per seed"),
    ):
        with pytest.raises(UserError, match=message):
            Comparison(bad)
    with pytest.raises(UserError, match="unknown protocol"):
        Comparison(rows(), protocol="flickr")
