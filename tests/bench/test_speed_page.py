"""The page of speed says what the documents say; `make bench` runs what is there."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from scripts import results, speed_results

from bench import _all, _sides

MACHINE = {
    "processor": "Test", "cores": 2, "memory_gib": 4.0, "load_average": 0.1, "threads": 2,
    "python": "3.11", "torch": "2.13",
}  # fmt: skip


def document(**more):
    claims = [
        _sides.claim("fast | enough", [9.0, 10.0, 11.0], [1.0, 1.0, 1.0], names=("a", "b"),
                     unit="s", at_least=8),
        _sides.claim("too slow", [3.0, 3.0, 3.0], [2.0, 2.0, 2.0], names=("ours", "bare"),
                     unit="MiB", at_most=1.25, note="the disk"),
        _sides.claim("half", [2.0], [1.0], names=("a", "b"), unit="s", at_least=4),
    ]  # fmt: skip
    floor = [{"what": "bare product", "value": 1234.5, "unit": "ms"}]
    return {"machine": MACHINE, "command": "x", "claims": claims, "floor": floor, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "results" / "speed").mkdir(parents=True)
    return tmp_path


def write(root: Path, name: str, content) -> None:
    (root / "docs" / "results" / "speed" / f"{name}.json").write_text(json.dumps(content))


def test_a_row_has_target_ratio_medians_and_how_much_is_missing(root: Path) -> None:
    write(root, "metrics", document())
    (text,) = speed_results.pages(root).values()
    assert r"| fast \| enough | ≥ 8 | 10 [9, 11] | 10 : 1 s (a : b) | met |  |" in text
    missed = "| too slow | ≤ 1.25 | 1.5 [1.5, 1.5] | 3 : 2 MiB (ours : bare) |"
    assert f"{missed} **missed**: 1.20 x the target | the disk |" in text
    assert "**missed**: 50% of the target" in text
    assert (
        "Of 3 claims 1 are met and 2 missed. Not measured yet: Training, Embedding, Adapter "
        "and runtimes, Search," in text
    )
    assert "Floor: bare product 1,234 ms." in text
    assert text.count("*Not measured yet: no claims in") == len(speed_results.BENCHES) - 1


def test_what_has_no_target_is_neither_met_nor_missed(root: Path) -> None:
    free = _sides.claim("as it is", [2.0], [1.0], names=("a", "b"), unit="s")
    write(root, "metrics", document() | {"claims": [*document()["claims"], free]})
    (text,) = speed_results.pages(root).values()
    assert "| as it is |  | 2 [2, 2] | 2 : 1 s (a : b) |  |  |" in text
    assert "Of 3 claims" in text


def test_growth_has_a_table_and_a_picture(root: Path) -> None:
    curve = {
        "what": "search & rank", "unit_size": "1,000 rows", "scales": [1, 4, 16],
        "seconds": [0.01, 0.04, 0.17], "slope": 1.02, "interval": [0.98, 1.06], "why": "linear",
    }  # fmt: skip
    write(root, "growth", document(curves=[curve, curve | {"what": "embed"}], scales=[1, 4, 16]))
    found = {path.name: text for path, text in speed_results.pages(root).items()}
    row = "| search & rank | 1,000 rows | 1.02 [0.98, 1.06] | 0.01, 0.04, 0.17 | linear |"
    assert row in found["speed.md"]
    drawn = ElementTree.fromstring(found["growth.svg"])
    assert len([part for part in drawn if part.tag.endswith("path")]) == 2
    assert "search & rank: slope 1.02" in [part.text for part in drawn]


def test_every_page_is_what_the_committed_json_says(repo: Path) -> None:
    assert set(results.KINDS) <= {path.stem for path in (repo / "scripts").glob("*.py")}
    for path, text in results.pages(repo).items():
        assert path.read_text(encoding="utf-8") == text, "python scripts/results.py --write"


def test_every_bench_has_a_place_and_a_smoke_run_keeps_nothing() -> None:
    for name in _all.names():
        assert "--output" not in _all.words(name, smoke=True)
        kept = _all.words(name, smoke=False)
        assert (name in _all.PRINTS_ONLY) != ("--output" in kept)
    assert _all.words("search", smoke=False)[-1].endswith("docs/results/search/search.json")
    assert _all.words("metrics", smoke=False)[-1].endswith("docs/results/speed/metrics.json")
    with pytest.raises(SystemExit):
        _all.main(["nonsense"])


def test_a_smoke_run_measures_and_agrees(repo: Path, tmp_path: Path) -> None:
    output = tmp_path / "metrics.json"
    words = [sys.executable, str(repo / "bench" / "metrics.py"), "--smoke", "--no-peers"]
    done = subprocess.run([*words, "--output", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    first = found["claims"][0]
    assert first["sides"] == ["ours", "bare product"]
    assert first["medians"][1] > 0
    assert speed_results.table(found["claims"]).count("\n") == 2 + len(found["claims"])
