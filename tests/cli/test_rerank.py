"""UniAdapter on a small local BLIP, from the command line to a re-ranked search."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from crossadapt.backbones import save_backbone, tiny
from crossadapt.cli.main import main

QUICK = ["--epochs", "1", "--batch-size", "8", "--guard", "0", "--quiet"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP directory as a user would have it."""
    return save_backbone(tiny("blip"), tmp_path_factory.mktemp("models") / "blip", dtype="float32")


@pytest.fixture(scope="module")
def adapter(blip: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UniAdapter trained by the task that the backbone asks for."""
    output = tmp_path_factory.mktemp("runs") / "uni"
    args = ["--data", str(photos), "--backbone", str(blip), "--method", "uniadapter"]
    options = ["--method.r", "4"]
    assert main(["train", *args, *options, "--output", str(output), *QUICK]) == 0
    return output


def test_the_run_used_matching(adapter: Path) -> None:
    record = json.loads((adapter / "run.json").read_text())
    assert record["identity"]["task"] == "matching"
    assert record["fit"]["status"] == "finished"
    events = [json.loads(line) for line in (adapter / "events.jsonl").read_text().splitlines()]
    assert {"contrast", "match"} <= next(e for e in events if e["event"] == "step").keys()


def test_evaluate_with_a_second_stage(adapter: Path, photos: Path, capsys) -> None:
    args = ["evaluate", "--data", str(photos), "--adapter", str(adapter), "--rerank", "4"]
    assert main(args) == 0
    said = capsys.readouterr().out
    assert said.count("the 4 nearest of each query re-ranked") == 2
    assert len(re.findall(r"re-ranking: [\d,]+ pairs in [\d.]+ s, [\d.]+ ms per query", said)) == 2
    assert main([*args, "--rerank-weight", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["reranked"]
    assert set(found) == {"frozen", "adapted"}
    for part in found.values():
        assert (part["k"], part["weight"]) == (4, 1.0)
        assert part["ms_per_query"] > 0
        assert "text_to_image.r1" in part["paired"]


def test_search_with_a_second_stage(adapter: Path, photos: Path, tmp_path: Path, capsys) -> None:
    store = ["--store", str(tmp_path / "store")]
    index = ["index", str(photos), "--collection", "c", "--adapter", str(adapter), *store]
    assert main([*index, "--quiet"]) == 0
    capsys.readouterr()
    search = ["search", "c", "a red square", *store, "--k", "3"]
    assert main([*search, "--rerank", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    logits = [hit["match"] for hit in found["hits"]]
    assert len(logits) == 3
    assert logits == sorted(logits, reverse=True)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert found["seconds"]["rerank"] > 0
    # They are the best three of the six nearest.
    assert main(["search", "c", "a red square", *store, "--k", "6", "--rerank", "6", "--json"]) == 0
    six = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["id"] for hit in six[:3]] == [hit["id"] for hit in found["hits"]]
    assert main([*search, "--k", "6", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)["hits"]
    assert {hit["id"] for hit in plain} == {hit["id"] for hit in six}
    assert all(hit["match"] is None for hit in plain)
    assert main([*search, "--rerank", "6"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"re-ranked the 6 nearest in \d+ ms; 3 of the hits shown were judged", said)


def test_refused_without_a_fusion_tower(trained: Path, photos: Path, capsys) -> None:
    args = ["evaluate", "--data", str(photos), "--adapter", str(trained), "--rerank", "4"]
    assert main(args) == 1
    assert "fusion tower" in capsys.readouterr().err


@pytest.mark.parametrize("output", [[], ["--json"]], ids=["table", "json"])
def test_a_search_is_refused_without_a_fusion_tower(
    output: list[str], trained: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    store = ["--store", str(tmp_path / "store")]
    index = ["index", str(photos), "--collection", "c", "--adapter", str(trained), *store]
    assert main([*index, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["search", "c", "a red square", *store, "--rerank", "4", *output]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "re-ranking needs a backbone with a fusion tower, tiny:clip has none" in err
    assert "use a BLIP backbone" in err
    # Without the option the same collection answers.
    assert main(["search", "c", "a red square", *store, *output]) == 0
