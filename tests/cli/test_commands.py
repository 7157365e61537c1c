"""The commands end to end, in this process, on a tiny backbone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.cli.conftest import QUICK
from tests.data.zoo import folder_of_pictures

from crossadapt.cli.main import main


def document(capsys: pytest.CaptureFixture[str]) -> dict:
    """All of standard output as one JSON document."""
    return json.loads(capsys.readouterr().out)


class TestTrain:
    def test_writes_adapter_card_record_and_report(self, trained: Path) -> None:
        names = {path.name for path in trained.iterdir()}
        wanted = {"adapter_config.json", "adapter_model.safetensors", "README.md", "run.json"}
        assert wanted | {"report.html", "events.jsonl"} <= names
        page = (trained / "report.html").read_text()
        assert "Queries, before and after" in page
        assert "data:image/" in page

    def test_prints_before_and_after(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["train", "--data", str(photos), "--output", str(tmp_path / "r"), *QUICK]
        assert main([*args, "--method", "projection"]) == 0
        out = capsys.readouterr().out
        assert "zero-shot" in out
        assert "adapted" in out
        assert str(tmp_path / "r" / "report.html") in out

    def test_options_of_the_method_reach_it(self, photos: Path, tmp_path: Path) -> None:
        args = ["train", "--data", str(photos), "--output", str(tmp_path / "r"), *QUICK]
        assert main([*args, "--method.r", "2", "--method.d_s=0", "--quiet"]) == 0
        saved = json.loads((tmp_path / "r" / "adapter_config.json").read_text())
        assert (saved["config"]["r"], saved["config"]["d_s"]) == (2, 0)

    def test_recipe_and_smoke(self, photos: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(
            f"data: {photos}\nbackbone: tiny:clip\nmethod: partial\nmethod_options: {{layers: 2}}\n"
            "batch_size: 8\nepochs: 50\nlr: 1e-3\nsmoke: {epochs: 1, guard: 0}\n"
        )
        args = ["train", "--recipe", str(recipe), "--smoke", "--output", str(tmp_path / "r")]
        assert main([*args, "--lr", "0.002", "--quiet"]) == 0
        record = json.loads((tmp_path / "r" / "run.json").read_text())
        assert record["recipe"]["epochs"] == 1
        assert record["recipe"]["lr"] == 0.002
        assert record["job"]["method"] == "partial"
        assert record["identity"]["config"]["layers"] == 2

    def test_a_folder_of_one_s_own_with_ten_broken_files(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        broken = folder_of_pictures(tmp_path / "photos", count=200, broken=10)
        args = ["--data", str(tmp_path / "photos")]
        output = tmp_path / "r"
        assert main(["train", *args, "--output", str(output), *QUICK]) == 0
        assert "10 inputs left out" in capsys.readouterr().out
        lines = (output / "ledger.jsonl").read_text().splitlines()
        # A picture that is not there is listed by its caption.
        listed = {Path(json.loads(line)["item"]).stem for line in lines}
        assert listed == {Path(name).stem for name in broken}
        assert main(["evaluate", *args, "--adapter", str(output), "--json", "--split", "all"]) == 0
        assert sum(document(capsys)["left_out"].values()) == 10


class TestEvaluate:
    def test_json_is_pure_and_complete(
        self, photos: Path, trained: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["evaluate", "--data", str(photos), "--adapter", str(trained), "--json"]
        assert main(args) == 0
        found = document(capsys)
        assert found["protocol"] == "pairs"
        assert found["backbone"] == "tiny:clip"
        run = json.loads((trained / "run.json").read_text())
        for name, part in (("frozen", "before"), ("adapted", "after")):
            for key in ("r1", "r5", "r10", "median_rank", "queries"):
                assert found[name]["text_to_image"][key] == run[part]["text_to_image"][key]
        interval = found["intervals"]["adapted"]["text_to_image.r1"]
        assert interval["low"] <= interval["estimate"] <= interval["high"]
        assert "p_value" in found["paired"]["text_to_image.r1"]
        assert found["notes"] == []

    def test_without_an_adapter_only_the_frozen_model(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = tmp_path / "report.html"
        args = ["evaluate", "--data", str(photos), "--backbone", "tiny:siglip"]
        assert main([*args, "--report", str(report)]) == 0
        out = capsys.readouterr().out
        assert "zero-shot" in out
        assert "adapted" not in out
        assert report.is_file()

    def test_says_when_the_split_was_trained_on(
        self, photos: Path, trained: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["evaluate", "--data", str(photos), "--adapter", str(trained), "--split", "train"]
        assert main(args) == 0
        assert "trained on this split" in capsys.readouterr().err


class TestPlan:
    @pytest.mark.parametrize(
        ("options", "trainable"),
        [
            ([], 519168),
            (["--method.d-s", "8"], 520896),
            (["--method.r", "16"], 1008000),
            (["--method.r", "16", "--method.d-s", "64"], 988416),
            (["--method.r", "16", "--method.d-s", "512"], 805632),
        ],
    )
    def test_published_counts(
        self, options: list[str], trainable: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["plan", "--backbone", "config:clip-vit-base-patch32", "--json", *options]
        assert main(args) == 0
        assert document(capsys)["trainable"] == trainable

    def test_full_fine_tuning_by_the_rule_of_clip4clip(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["plan", "--backbone", "config:clip-vit-base-patch32", "--method", "full"]
        assert main([*args, "--json"]) == 0
        assert document(capsys)["trainable"] == 123540993

    def test_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", "--backbone", "tiny:clip", "--method", "peft:lora"]) == 0
        out = capsys.readouterr().out
        assert "trained of" in out
        assert "q_proj" in out


class TestData:
    def test_inspect(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder_of_pictures(tmp_path / "p", count=30, broken=3)
        assert main(["data", "inspect", str(tmp_path / "p"), "--json"]) == 0
        found = document(capsys)
        assert len(found["left_out"]) == 3
        assert set(found["splits"]) == {"train", "val", "test"}
        assert found["duplicates"]["items"] == 27
        assert main(["data", "inspect", str(tmp_path / "p")]) == 0
        out = capsys.readouterr().out
        assert "train:" in out
        assert "left out" in out

    def test_openmoji(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from crossadapt import data

        few = data.read_manifest("openmoji").take(range(6))
        monkeypatch.setattr(data, "read_manifest", lambda source: few)
        assert main(["data", "openmoji", "--output", str(tmp_path / "emoji")]) == 0
        assert (tmp_path / "emoji" / "metadata.csv").is_file()
        assert "wrote" in capsys.readouterr().out

    def test_unknown_subcommand(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "inspekt", "x"]) == 1
        assert "'inspect'" in capsys.readouterr().err
        assert main(["data"]) == 1


class TestCompare:
    def test_runs_each_once_and_keeps_what_is_finished(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        base = ["compare", "--data", str(photos), "--output", str(tmp_path), *QUICK, "--json"]
        first = ["--methods", "projection", "--seeds", "0"]
        assert main([*base, *first]) == 0
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        assert [row["method"] for row in found["rows"]] == ["zero-shot", "projection"]
        row = found["rows"][1]
        assert row["seconds"]["estimate"] > 0
        assert row["peak_memory_mb"]["estimate"] > 50
        assert "finished before" not in captured.err
        for suffix in ("json", "md", "html", "png"):
            assert (tmp_path / f"comparison.{suffix}").is_file()
        assert main([*base, *first]) == 0
        captured = capsys.readouterr()
        assert "finished before, kept" in captured.err
        assert json.loads(captured.out)["rows"] == found["rows"]

    def test_a_failing_run_says_why(
        self,
        tmp_path: Path,
        photos: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from crossadapt.training import contender_runs

        def fail(command: list[str], stdout, **options: object):
            stdout.write("error: the loss is not a number\n")
            return subprocess.CompletedProcess(command, 1)

        monkeypatch.setattr(contender_runs.subprocess, "run", fail)
        base = ["compare", "--data", str(photos), "--output", str(tmp_path), *QUICK]
        assert main([*base, "--methods", "full:lr=1e30", "--seeds", "0"]) == 1
        err = capsys.readouterr().err
        assert "full:lr=1e30, seed 0 failed (code 1)" in err
        assert "the loss is not a number" in err


class TestDemo:
    def test_smoke_with_the_bundled_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from crossadapt.training import run as training

        whole = training.read_manifest

        def few(*args: object, **options: object):
            manifest = whole(*args, **options)
            return manifest.take(range(0, len(manifest), 40))

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(training, "read_manifest", few)
        monkeypatch.setattr("crossadapt.data.read_manifest", few)
        assert main(["demo", "--smoke"]) == 0
        out = capsys.readouterr().out
        assert "crossadapt serve openmoji --store runs/demo/collections" in out
        from crossadapt.search.collection import Collections

        made = Collections("runs/demo/collections").open("openmoji")
        assert made.card.view_names == ("frozen", "adapted")
        assert {row["attr_split"] for row in made.scan(["attr_split"]).__next__().to_pylist()} == {
            "test"
        }
        assert "zero-shot" in out
        assert "adapted" in out
        assert Path("runs/demo/report.html").is_file()

    def test_a_second_demo_leaves_the_first_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from crossadapt.cli import demo

        monkeypatch.chdir(tmp_path)
        assert demo.parse([]).output == Path("runs/demo")
        Path("runs/demo").mkdir(parents=True)
        assert demo.parse([]).output == Path("runs/demo-2")


def test_interrupted_training_says_how_to_go_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    from crossadapt.training import loop

    monkeypatch.setattr(loop.StopSignals, "raised", lambda self, *_: True)
    output = tmp_path / "r"
    args = ["train", "--data", str(photos), "--output", str(output), *QUICK]
    assert main(args) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(args) == 1, "a folder that holds a run is not written over"
    assert "--resume" in capsys.readouterr().err
    assert main([*args, "--resume"]) == 0


def test_the_shipped_recipes_are_valid(repo: Path) -> None:
    from crossadapt.cli import compare, train
    from crossadapt.training.job import read_recipe

    for recipe in sorted((repo / "recipes").glob("*.yaml")):
        parse = compare.parse if "methods" in read_recipe(recipe) else train.parse
        assert parse(["--recipe", str(recipe)]) is not None
        assert parse(["--recipe", recipe.stem, "--smoke"]) is not None


def test_a_moved_adapter_folder_still_works(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "elsewhere")
    args = ["evaluate", "--data", str(photos), "--adapter", str(tmp_path / "elsewhere")]
    assert main(args) == 0
    assert "adapted" in capsys.readouterr().out
