"""Suites: complete, and a failing method is a row that says so, never a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.data.zoo import folder_of_pictures
from tests.evaluation.test_comparison import rows as some_rows

from crossadapt.adapters.registry import method_names
from crossadapt.cli import compare as command
from crossadapt.errors import UserError
from crossadapt.evaluation import evaluate
from crossadapt.evaluation.comparison import Comparison, to_html, to_markdown
from crossadapt.evaluation.failure import Failure
from crossadapt.training import compare as module
from crossadapt.training import suites
from crossadapt.training.contender_runs import RunFailed, failed_file, known_failure
from crossadapt.training.job import TrainJob
from crossadapt.training.method_strings import parse_contender


def part(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text("here:\n  data: photos\n" + text)
    return path


@pytest.mark.parametrize("name", suites.suite_files())
def test_a_shipped_suite_has_every_registered_method_or_says_why_not(name) -> None:
    for each in suites.read_suite(name):
        taken = {parse_contender(text).method for text in each.recipe["methods"]}
        assert taken | set(each.leave_out) >= set(method_names())
        assert all(len(why) > 10 for why in each.leave_out.values())
        assert len(each.recipe["seeds"]) >= 3


def test_a_method_registered_later_takes_part_without_an_edit(tmp_path, monkeypatch) -> None:
    path = part(tmp_path, "  methods: [coop]\n  leave_out: {vpt: it is not what we look at}\n")
    known = method_names()
    monkeypatch.setattr(suites, "method_names", lambda: [*known, "toy"])
    [found] = suites.read_suite(str(path))
    assert found.recipe["methods"][0] == "coop"
    assert found.recipe["methods"][-1] == "toy"
    assert "vpt" not in found.recipe["methods"]
    assert len(found.recipe["methods"]) == len(known)  # one left out, one new


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  methods: [no-such]\n", "no-such"),
        ("  methods: [coop:x=1]\n", "no option 'x'"),
        ("  leave_out: {copo: it is misspelt}\n", "'coop'"),
        ("  tuned: [coop]\n", "tuned but not named"),
    ],
)
def test_a_wrong_suite_is_an_error_with_the_nearest_name(tmp_path, text, message) -> None:
    with pytest.raises(UserError, match=message):
        suites.read_suite(str(part(tmp_path, text)))


def test_names_and_parts_are_checked(tmp_path) -> None:
    with pytest.raises(UserError, match="'retrieval'"):
        suites.read_suite("retrival")
    with pytest.raises(UserError, match="'clips'"):
        suites.read_suite("retrieval", ["clip"])
    assert [each.name for each in suites.read_suite("retrieval", ["clips"])] == ["clips"]
    (tmp_path / "bad.yaml").write_text("here: [1]\n")
    with pytest.raises(UserError, match="with its data"):
        suites.read_suite(str(tmp_path / "bad.yaml"))


def test_the_command_reads_a_suite_and_what_is_typed_wins() -> None:
    found = command.parse(["--suite", "retrieval", "--output", "out", "--epochs", "3"])
    assert isinstance(found, command.SuiteOptions)
    assert [each.name for each, _ in found.parts] == ["openmoji", "clips"]
    for each, options in found.parts:
        assert options.output == Path("out") / each.name
        assert options.keep_going
        assert options.epochs == 3
        assert options.seeds == (0, 1, 2)
        assert options.data == each.name
        assert options.task_options["token_drop"] > 0
    smoke = command.parse(["--suite", "retrieval", "--only", "clips", "--smoke"])
    [(_, options)] = smoke.parts
    assert (options.epochs, options.seeds) == (1, (0,))
    for flag in ("--recipe", "--methods", "--data"):
        with pytest.raises(UserError, match="brings its own"):
            command.parse(["--suite", "retrieval", flag, "x"])
    with pytest.raises(UserError, match="parts of a suite"):
        command.parse(["--data", "photos", "--only", "clips"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten good pictures with side-car texts."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder_of_pictures(folder, count=10, broken=0)
    return folder


def test_missing_data_of_a_later_part_is_found_before_anything_is_trained(
    photos, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"one:\n  data: {photos}\ntwo:\n  data: {tmp_path / 'nowhere'}\n")
    monkeypatch.setattr(module, "compare", lambda *args, **options: pytest.fail("it trained"))
    options = command.parse(["--suite", str(path), "--output", str(tmp_path / "out")])
    with pytest.raises(UserError, match="nowhere"):
        command.run(options)


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """`compare` with runs that are played instead of trained: what each does, and a log of them."""
    played: list[tuple[str, int]] = []
    outcome: dict[str, RunFailed] = {}

    def play(job, result):
        played.append((job.method, job.seed))
        if job.method in outcome:
            failure = outcome[job.method]
            failed_file(result).write_text(json.dumps({"reason": failure.reason}))
            raise failure
        scores = evaluate(np.eye(12), np.eye(12), range(12), range(12)).to_dict(ranks=True)
        made = {"before": scores, "after": scores, "held_out": "test", "trained": 10}
        made |= {"share": 0.1, "seconds": 1.0, "peak_memory_mb": 2.0, "order_probe": None}
        made |= {"precision": "fp32", "threads": 1, "versions": {}}
        result.write_text(json.dumps(made))
        return made

    monkeypatch.setattr(module, "run_child", play)
    return played, outcome


def call(photos, tmp_path, methods, **changes):
    base = TrainJob(data=str(photos), backbone="tiny:clip")
    return module.compare(base, methods, [0, 1], tmp_path / "out", say=lambda line: None, **changes)


def test_a_failed_run_is_a_row_and_is_not_trained_again_unless_asked(
    runs, photos, tmp_path
) -> None:
    played, outcome = runs
    outcome["full"] = RunFailed(1, ["step 3", "error: the loss is not a number", "  fix: lower lr"])
    methods = ["projection", "full:lr=1e30", "maple:depth=99"]
    found, paths = call(photos, tmp_path, methods, keep_going=True)
    assert [row.method for row in found.rows] == ["zero-shot", "projection"]
    reasons = {failure.method: failure for failure in found.failures}
    assert reasons["full:lr=1e30"].reason == "the loss is not a number"
    assert list(reasons["full:lr=1e30"].seeds) == [0, 1]
    assert "depth is 99" in reasons["maple:depth=99"].reason
    assert [p for p in played if p[0] == "maple"] == []
    text = paths["md"].read_text()
    assert "| full:lr=1e30 | failed with seeds 0, 1: the loss is not a number | — |" in text
    assert "failed with seeds 0, 1: the loss" in paths["html"].read_text()
    record = json.loads(paths["json"].read_text())
    assert {f["method"] for f in record["failures"]} == {"full:lr=1e30", "maple:depth=99"}

    played.clear()
    again, _ = call(photos, tmp_path, methods, keep_going=True)
    assert played == []
    assert again.failures == found.failures
    outcome.clear()
    better, _ = call(photos, tmp_path, methods, keep_going=True, retry_failed=True)
    assert played == [("full", 0), ("full", 1)]
    assert [f.method for f in better.failures] == ["maple:depth=99"]


def test_without_keep_going_a_failure_stops_and_nothing_finished_is_an_error(
    runs, photos, tmp_path
) -> None:
    _, outcome = runs
    outcome["full"] = RunFailed(-9, [])
    with pytest.raises(UserError, match=r"full, seed 0 failed \(code -9\)"):
        call(photos, tmp_path, ["full"])
    with pytest.raises(UserError, match="nothing to compare"):
        call(photos, tmp_path, ["full"], keep_going=True)
    with pytest.raises(UserError, match="depth is 99"):
        call(photos, tmp_path, ["maple:depth=99"])


def test_reasons(tmp_path) -> None:
    assert RunFailed(-9, ["half a line"]).reason.startswith("ended by signal 9")
    assert RunFailed(2, ["Traceback", "KeyError: 'x'"]).reason == "KeyError: 'x'"
    assert RunFailed(2, []).reason == "ended with code 2"
    assert len(RunFailed(1, ["error: " + "x" * 999]).reason) == 200
    assert known_failure(tmp_path / "a.json") is None
    failed_file(tmp_path / "a.json").write_text('{"reason": "why"}')
    assert known_failure(tmp_path / "a.json") == "why"


def test_failures_stand_below_the_rows_and_do_not_touch_the_best() -> None:
    found = Comparison(some_rows(), failures=[Failure("full", "it diverged", [2])])
    assert "| full | failed with seed 2: it diverged |" in to_markdown(found)
    assert "failed with seed 2: it diverged" in to_html(found)
    assert found.to_dict()["failures"] == [
        {"method": "full", "reason": "it diverged", "seeds": [2]}
    ]
