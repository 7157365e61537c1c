"""A method is one file: a toy one is put beside the others and everything knows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("new-method")  # what it looks at is made once per process

ROOT = Path(__file__).resolve().parents[2]

TOY = '''"""Toy gain: a trained factor per channel after every MLP. Not a published method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from crossadapt.adapters.plan import Insertion
from crossadapt.adapters.registry import register


@dataclass(frozen=True)
class ToyGainConfig:
    """Options of the toy."""

    start: float = 0.0
    """Value of the gains in the beginning."""


class Gain(nn.Module):
    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), start))

    def forward(self, x):
        return x * (1 + self.gain.to(x.dtype))


@register("toy-gain", ToyGainConfig)
def plan(backbone, config):
    sites = [site for site in backbone.sites() if site.kind == "mlp"]
    return [Insertion(site, Gain(site.width, config.start)) for site in sites]
'''

# What stands in for the file's place in the package; no other test may see it.
SITE = """
import crossadapt.methods
crossadapt.methods.__path__.append({folder!r})
"""

LOOK = """
import contextlib, io, json, sys
from crossadapt.cli.main import main
from crossadapt.adapters.registry import method_names

out = {"names": "toy-gain" in method_names()}
with contextlib.redirect_stdout(io.StringIO()) as said:
    main(["train", "--method", "toy-gain", "--help"])
out["help"] = said.getvalue()
photos, runs = sys.argv[1:]
quick = ["--epochs", "1", "--batch-size", "8", "--guard", "0"]
model = ["--data", photos, "--backbone", "tiny:clip"]
out["train"] = main(["train", *model, "--method", "toy-gain", "--method.start", "0.01",
                     "--output", runs + "/one", *quick])

from tests.methods import test_behaviour
out["matrix"] = [backbone for name, backbone in test_behaviour.CASES if name == "toy-gain"]
sys.path.insert(0, "scripts")
import check_docs
out["docs"] = list(check_docs.method_pages())
out["compare"] = main(["compare", *model, "--methods", "toy-gain", "--seeds", "0",
                       "--output", runs + "/two", *quick])
from crossadapt.training import suites
suite = [each for name in suites.suite_files() for each in suites.read_suite(name)]
out["suites"] = [each.recipe["methods"] for each in suite]
print("FOUND " + json.dumps(out))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    from tests.data.zoo import picture

    folder = tmp_path_factory.mktemp("toy")
    (folder / "methods").mkdir()
    (folder / "methods" / "toy_gain.py").write_text(TOY)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE.format(folder=str(folder / "methods")))
    photos = folder / "photos"
    photos.mkdir()
    for number in range(40):
        picture(number).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"picture number {number}")
    places = [str(folder / "site"), str(ROOT / "src"), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(photos), str(folder / "runs")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    [line] = [text for text in done.stdout.splitlines() if text.startswith("FOUND ")]
    return {**json.loads(line.removeprefix("FOUND ")), "runs": folder / "runs"}


def test_the_command_line_trains_it_with_its_own_options(found) -> None:
    assert found["names"]
    assert "--method.start" in found["help"]
    assert found["train"] == 0
    saved = json.loads((found["runs"] / "one" / "adapter_config.json").read_text())
    assert saved["method"] == "toy-gain"
    assert saved["config"]["start"] == 0.01


def test_a_comparison_has_a_row_of_it(found) -> None:
    assert found["compare"] == 0
    rows = json.loads((found["runs"] / "two" / "comparison.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["zero-shot", "toy-gain"]


def test_every_shipped_suite_compares_it(found) -> None:
    assert found["suites"]
    assert all("toy-gain" in methods for methods in found["suites"])


def test_the_matrix_tries_it_on_every_family(found) -> None:
    families = {backbone.partition("-")[0] for backbone in found["matrix"]}
    assert families >= {"clip", "siglip", "blip"}


def test_the_documentation_misses_its_page(found) -> None:
    [gap] = found["docs"]
    assert gap == "docs/methods/toy-gain.md: missing; every registered method has a page"
