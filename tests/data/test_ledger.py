from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from crossadapt.data import Ledger


def test_entries_once_and_summary() -> None:
    ledger = Ledger()
    for _ in range(2):
        ledger.add("a.jpg", "truncated: 3 bytes missing", "decode")
    ledger.add("b.jpg", "truncated: 9 bytes missing", "decode")
    ledger.add("c.jpg", "empty file: 0 bytes", "decode")
    assert len(ledger) == 3
    assert ledger.summary() == {"truncated": 2, "empty file": 1}
    assert ledger.render() == "3 inputs left out: truncated (2), empty file (1)"
    assert Ledger().render() == ""
    assert Ledger()


def test_file_is_continued_after_a_torn_line(tmp_path) -> None:
    path = tmp_path / "deep" / "ledger.jsonl"
    Ledger(path).add("a", "x")
    with path.open("a") as file:
        file.write('{"item": "torn')
    ledger = Ledger(path)
    ledger.add("a", "x")
    ledger.add("b\udcff", "y")
    assert [entry.item for entry in ledger] == ["a", "b\udcff"]
    assert [entry.item for entry in Ledger(path)] == ["a", "b\udcff"]
    assert json.loads(path.read_text().splitlines()[-1])["reason"] == "y"


def test_threads_and_processes(tmp_path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    code = (
        "import sys; from crossadapt.data.ledger import Ledger; ledger = Ledger(sys.argv[1])\n"
        "for i in range(200): ledger.add(f'{sys.argv[2]}-{i}', 'r')"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, path, str(n)]) for n in range(2)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: ledger.add(f"t-{n % 100}", "r"), range(200)))
    assert [other.wait() for other in others] == [0, 0]
    assert len(ledger) == 500
    assert len(path.read_text().splitlines()) == 500
