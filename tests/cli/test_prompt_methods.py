"""Prompt and bottleneck methods from the command line: train, save, and measure again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import QUICK

from crossadapt.cli.main import main

METHODS = {
    "coop": ["--method.tokens", "4"],
    "vpt": [],
    "maple": ["--chunk", "3"],
    "apollo": ["--chunk", "3"],
    "adaptformer": [],
    "attention-adapter": [],
}


@pytest.mark.parametrize("method", METHODS)
def test_train_and_evaluate(method: str, photos: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "r"
    args = ["--data", str(photos)]
    options = ["--method", method, *METHODS[method], "--quiet", *QUICK]
    assert main(["train", *args, "--output", str(output), *options]) == 0
    record = json.loads((output / "run.json").read_text())
    assert record["fit"]["status"] == "finished"
    capsys.readouterr()
    assert main(["evaluate", *args, "--adapter", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for direction in ("text_to_image", "image_to_text"):
        assert found["adapted"][direction]["r10"] == record["after"][direction]["r10"]
