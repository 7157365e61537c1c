"""Pages of results say what the committed JSON says, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import results_pages as pages

from crossadapt.evaluation.comparison import Comparison, ComparisonRow
from crossadapt.evaluation.failure import Failure

R1, I1, PROBE = "text_to_image.r1", "image_to_text.r1", "order_probe"


def row(name: str, scores, trained: int, seconds: float, memory: float) -> ComparisonRow:
    metrics = {R1: scores, I1: [s - 1 for s in scores], PROBE: [50.0] * len(scores)}
    if not trained:
        return ComparisonRow(name, metrics, 0, 0.0)
    return ComparisonRow(name, metrics, trained, trained / 1e6, [seconds] * 3, [memory] * 3)


@pytest.fixture
def record():
    comparison = Comparison(
        [
            row("zero-shot", [10.0], 0, 0, 0),
            row("best", [20.0, 21.0, 22.0], 5_000, 90, 900),
            row("near:lr=1e-3", [19.0, 20.0, 21.0], 400, 80, 1000),
            row("cheap", [11.5, 12.0, 12.5], 10, 5, 100),
            row("none", [9.0, 10.0, 11.0], 20, 10, 200),
        ],
        config={
            "backbone": "pico-clip",
            "seeds": [0, 1, 2],
            "threads": 1,
            "precision": "fp32",
            "tuned": ["best"],
            "left_out": {"apollo": "it has no list of texts"},
        },
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
        notes=["zero-shot: a note."],
        failures=[
            Failure("full", "the loss is not a number", [0, 1, 2]),
            Failure("cheap", "x", [3]),
        ],
    )
    return {**json.loads(json.dumps(comparison.to_dict())), "ran": ["seeds 0, 1, 2"]}


def test_the_table_has_every_row_with_its_interval_and_its_mark(record) -> None:
    lines = pages.table(record).splitlines()
    assert lines[0].startswith("| method | text → item R@1 | item → text R@1 | order probe |")
    assert lines[2] == "| `zero-shot` | 10.0 | 9.0 | 50.0 |  |  |  |  |"
    # 4.3027 / sqrt 3 is the half-width of a t interval over three values one apart.
    assert lines[3].startswith("| `best` | 21.0 [18.5, 23.5] | 20.0 [17.5, 22.5] |")
    assert lines[3].endswith("| 5,000 | 0.50% | 90 | 900 |")
    assert lines[4].startswith("| `near:lr=1e-3` † | 20.0 [17.5, 22.5] |")
    assert lines[-1].startswith("| `full` | failed: the loss is not a number |")
    assert len(lines) == 2 + 5 + 1


def test_remarks_say_what_must_be_known(record) -> None:
    text = pages.remarks(record)
    assert "seeds 0, 1, 2" in text
    assert "† The learning rate is a first guess" in text
    assert "`cheap` failed with seed 3: x." in text
    assert "`apollo` does not take part: it has no list of texts." in text
    assert "- zero-shot: a note." in text


def test_choices_are_made_among_those_not_worse_than_the_best(record) -> None:
    assert [r["method"] for r in pages.not_worse(record)] == ["best", "near:lr=1e-3"]
    assert pages.best(record).startswith("`best`: R@1 21.0 [18.5, 23.5]; intervals overlap with")
    assert pages.smallest(record).endswith("400 trained parameters")
    assert pages.fastest(record).endswith("80 seconds an epoch")
    assert pages.leanest(record).startswith("`best`: R@1")
    assert pages.useless(record) == "`none` †, `full` (failed)"


def test_who_knows_what_comes_first(record) -> None:
    assert pages.ordered(record) == "none"
    probes = {"best": (60.0, 55.0, 65.0), "cheap": (60.0, 49.0, 71.0), "none": (62.0, None, None)}
    for each in record["rows"]:
        if each["method"] in probes:
            values = zip(("estimate", "low", "high"), probes[each["method"]], strict=True)
            each["metrics"][PROBE] = dict(values)
    # An interval that holds chance says nothing, nor does a single seed, which has none.
    assert pages.ordered(record) == "`best` 60.0 [55.0, 65.0]"
    for each in record["rows"]:
        del each["metrics"][PROBE]
    assert pages.ordered(record) == "nothing to tell, pictures have no order"


def test_one_seed_has_no_interval_and_no_equals(record) -> None:
    for each in record["rows"]:
        for values in each["metrics"].values():
            values.update(low=None, high=None)
    assert [r["method"] for r in pages.not_worse(record)] == ["best"]
    assert "| `best` | 21.0 |" in pages.table(record)
    assert pages.useless(record) == "`none` †, `full` (failed)"


def test_the_guide_gets_its_numbers_between_the_marks_and_nowhere_else(record) -> None:
    text = "Words 1.\n<!-- measured: fastest -->\nold\n<!-- end -->\nmore words\n"
    found = pages.guide(text, {"openmoji": record, "clips": None})
    assert "old" not in found
    assert (
        "- Pictures: OpenMoji: `near:lr=1e-3` †: R@1 20.0 [17.5, 22.5], 80 seconds an epoch"
        in found
    )
    assert "- Videos: generated clips: *Not measured yet" in found
    assert found.startswith("Words 1.\n")
    assert found.endswith("<!-- end -->\nmore words\n")
    assert pages.guide(found, {"openmoji": record, "clips": None}) == found
    with pytest.raises(KeyError):
        pages.guide("<!-- measured: nicest -->\n<!-- end -->", {})


def test_pages_are_what_the_committed_json_says(repo: Path) -> None:
    for path, text in pages.pages(repo).items():
        assert path.read_text(encoding="utf-8") == text, "python scripts/results.py --write"


def test_every_question_is_asked_and_no_number_stands_outside(repo: Path) -> None:
    text = (repo / "docs" / "which-method.md").read_text(encoding="utf-8")
    assert {m[1] for m in pages._BLOCK.findall(text)} == set(pages.QUESTIONS)
    typed = pages._BLOCK.sub("", text)
    assert "R@1" not in typed


def settings(record, **changed):
    common = {"data": "openmoji", "settings": {"epochs": 2}, "task_options": {}}
    return {**record, "config": {**record["config"], **common, **changed}}


def test_comparisons_of_the_same_settings_are_joined_and_told_apart(record) -> None:
    rows = {row["method"]: row for row in record["rows"]}
    first = settings({**record, "rows": [rows["zero-shot"], rows["best"]], "notes": ["best: own."]})
    other = settings(record, seeds=[3, 4], precision="bf16")
    other["rows"].append({**rows["zero-shot"], "method": "zero-shot, under another name"})
    other["notes"] = ["best: left out.", "cheap: a note of it."]
    found = pages.joined([first, other])
    names = [row["method"] for row in found["rows"]]
    assert names == ["zero-shot", "best", "near:lr=1e-3", "cheap", "none"]
    said = pages.remarks(found)
    assert "- `best`: seeds 0, 1, 2, fp32, threads 1." in said
    assert "- `near:lr=1e-3`, `cheap`, `none`: seeds 3, 4, bf16, threads 1." in said
    assert "- cheap: a note of it." in said
    assert "left out" not in said
    with pytest.raises(ValueError, match="settings differs"):
        pages.joined([first, settings(record, settings={"epochs": 3})])


def test_costs_come_from_one_run_or_are_not_there(record) -> None:
    costs = json.loads(json.dumps(settings(record, seeds=[7])))
    for each in costs["rows"]:
        if each["seconds"]:
            each["seconds"]["estimate"] *= 10
    found = pages.priced(record, costs)
    assert "| 900 | 900 |" in pages.table(found).splitlines()[3]  # 90 s before
    assert "- Seconds and MiB: seeds 7, fp32, threads 1." in pages.remarks(found)
    assert pages.fastest(found).endswith("800 seconds an epoch")
    without = pages.priced(record, None)
    assert pages.table(without).splitlines()[3].endswith("| 0.50% |  |  |")
    assert pages.fastest(without) == pages.leanest(without) == "no costs measured yet"


def test_what_the_suite_names_and_nobody_measured_is_said(record) -> None:
    record["rows"].append({**record["rows"][-1], "method": "coop:lr=1e-2"})
    record["failures"].append({"method": "maple:lr=3e-3", "reason": "x", "seeds": [0]})
    found = pages.planned(record, "openmoji")
    assert "vpt:lr=1e-2" in found["waiting"]
    assert "coop:lr=1e-2" not in found["waiting"]
    assert "maple:lr=3e-3" not in found["waiting"]
    assert "- **Not measured yet**: `vpt`." in pages.remarks({**record, "waiting": ["vpt"]})
    assert found["config"]["tuned"] == ("cross-modal-adapter:lr=1.5e-3",)
    assert set(found["config"]["left_out"]) >= {"hada", "tip-adapter"}


def test_new_json_makes_new_pages(record, tmp_path) -> None:
    folder = tmp_path / "docs" / "results" / "retrieval" / "openmoji"
    folder.mkdir(parents=True)
    (folder / "all.json").write_text(json.dumps(record))
    (tmp_path / "docs" / "which-method.md").write_text("<!-- measured: best -->\n<!-- end -->\n")
    found = {path.name: text for path, text in pages.pages(tmp_path).items()}
    assert "`near:lr=1e-3` †" in found["retrieval.md"]
    assert "Not measured yet: `crossadapt" in found["retrieval.md"]  # the clips
    assert "`best` †: R@1 21.0" in found["which-method.md"]
