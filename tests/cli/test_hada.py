"""A fused backbone and HADA from the command line: train, evaluate, plan, index, search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.cli.conftest import QUICK

from crossadapt.cli.main import main

FUSED = "fuse:tiny:clip+tiny:siglip"
OPTIONS = ["transform", "16", "graph", "8", "heads", "2", "output", "16"]
METHOD = ["--method", "hada", *(f"--method.{x}" if i % 2 == 0 else x
                                for i, x in enumerate(OPTIONS))]  # fmt: skip


@pytest.fixture(scope="module")
def fused(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that the command line trained; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "fused"
    args = ["--data", str(photos), "--output", str(output), "--quiet", *QUICK, "--backbone", FUSED]
    assert main(["train", *args, *METHOD]) == 0
    return output


def test_train_and_evaluate(fused: Path, photos: Path, capsys) -> None:
    record = json.loads((fused / "run.json").read_text())
    assert record["fit"]["status"] == "finished"
    assert record["job"]["task"] == "fusion"
    assert [m["source"] for m in record["backbone"]["members"]] == ["tiny:clip", "tiny:siglip"]
    # The temperature is trained too, and is no part of the adapter.
    assert record["fit"]["trained"] == record["trained"] + 1
    assert main(["evaluate", "--data", str(photos), "--adapter", str(fused), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backbone"] == FUSED
    for direction in ("text_to_image", "image_to_text"):
        assert found["adapted"][direction]["r10"] == record["after"][direction]["r10"]
        assert found["frozen"][direction]["r10"] == record["before"][direction]["r10"]


def test_index_and_search(fused: Path, photos: Path, tmp_path: Path, capsys) -> None:
    store = ["--store", str(tmp_path / "store")]
    assert main(["index", str(photos), "--collection", "c", "--adapter", str(fused), *store]) == 0
    capsys.readouterr()
    assert main(["search", "c", "a red square", "--k", "3", "--json", "--compare", *store]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["hits"]) == len(document["frozen_hits"]) == 3
    first = document["hits"][0]
    assert main(["search", "c", "--image", first["item"], "--k", "1", "--json", *store]) == 0
    [hit] = json.loads(capsys.readouterr().out)["hits"]
    assert hit["item"] == first["item"]
    assert hit["cosine"] == pytest.approx(1.0, abs=1e-2)


def test_second_stage_by_recipe(fused: Path, photos: Path, tmp_path: Path) -> None:
    recipe = {
        "data": str(photos),
        "backbone": FUSED,
        "method": "hada",
        "method_options": {"transform": 16, "graph": 8, "heads": 2, "output": 16, "mix": "first"},
        "task_options": {"start_from": str(fused), "queue": 16},
        "batch_size": 8,
        "epochs": 1,
        "guard": 0,
        "quiet": True,
    }
    path, output = tmp_path / "second.yaml", tmp_path / "second"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["train", "--recipe", str(path), "--output", str(output)]) == 0
    first, second = (json.loads((f / "run.json").read_text()) for f in (fused, output))
    assert second["trained"] == first["trained"] + 1


def test_plan_counts_without_weights(capsys) -> None:
    source = "fuse:config:clip-vit-base-patch32+config:clip-vit-base-patch16"
    assert main(["plan", "--backbone", source, "--method", "hada", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["per_tower"]["vision"] == 4_993_024  # two models of 768, 512 + 512 together


def test_one_backbone_is_refused(photos: Path, capsys) -> None:
    args = ["--data", str(photos), "--output", "x", "--quiet", *QUICK, "--method", "hada"]
    assert main(["train", *args]) == 1
    assert "fuses several backbones, and tiny:clip is one" in capsys.readouterr().err


def test_compare_gives_each_method_its_own_task() -> None:
    from crossadapt.training.compare import _job
    from crossadapt.training.job import TrainJob
    from crossadapt.training.method_strings import parse_contender

    base = TrainJob(data="photos", backbone=FUSED, task="retrieval")
    tasks = [_job(base, parse_contender(m), 0).task for m in ("hada:heads=2", "projection")]
    assert tasks == ["fusion", "retrieval"]


def test_look_alikes_do_not_depend_on_what_else_is_on_the_canvas(photos: Path) -> None:
    from crossadapt import load
    from crossadapt.data import Ledger, read_manifest
    from crossadapt.training.splits import open_splits

    rows = read_manifest(str(photos))
    found = [
        open_splits(rows, load(source), ledger=Ledger(), cache=False, workers=1).duplicates
        for source in ("tiny:clip", FUSED)
    ]
    assert found[0].pictures == found[1].pictures
    assert found[0].items == found[1].items == 40
