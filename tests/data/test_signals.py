"""Numeric signals: every way to give them, and everything that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.data.zoo import picture

from crossadapt.data import Ledger, Manifest, read_manifest
from crossadapt.data.signals import Signals, has_signals, read_signals
from crossadapt.errors import UserError


def table(folder: Path, cells: list) -> Manifest:
    rows = []
    for number, cell in enumerate(cells):
        picture(number).save(folder / f"{number}.png")
        row = {"file_name": f"{number}.png", "text": f"picture {number}", "split": "train"}
        rows.append(json.dumps(row if cell is None else {**row, "signals": cell}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return read_manifest(folder)


def test_every_way_to_give_them(tmp_path) -> None:
    np.save(tmp_path / "named.npy", np.arange(6.0).reshape(3, 2))
    np.save(tmp_path / "4.signals.npy", np.arange(4).reshape(2, 2))
    cells = [[[1, 2], [3, None]], "named.npy", "[[5, 6]]", None, None, ""]
    manifest = table(tmp_path, cells)
    assert has_signals(manifest)
    ledger = Ledger()
    found = read_signals(manifest, ledger)
    assert isinstance(found, Signals)
    assert found.channels == 2
    assert not ledger.entries
    np.testing.assert_array_equal(found.series[0], [[1, 2], [3, np.nan]])
    np.testing.assert_array_equal(found.series[1], np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(found.series[2], [[5, 6]])
    np.testing.assert_array_equal(found.series[4], [[0, 1], [2, 3]])
    assert found.series[3] is None
    assert found.series[5] is None
    assert all(s is None or s.dtype == np.float32 for s in found.series)


def test_one_channel_and_written_manifests(tmp_path) -> None:
    manifest = table(tmp_path, [[1, 2, 3], [4, 5]])
    again = read_manifest(manifest.write(tmp_path / "kept" / "m.parquet"))
    assert again.fingerprint == read_manifest(tmp_path / "kept" / "m.parquet").fingerprint
    for rows in (manifest, again):
        found = read_signals(rows, Ledger())
        assert [s.shape for s in found.series if s is not None] == [(3, 1), (2, 1)]


def test_what_cannot_be_used_goes_to_the_ledger(tmp_path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "infinite.npy", np.array([[1.0, np.inf]]))
    np.save(tmp_path / "nothing.npy", np.full((2, 2), np.nan))
    (tmp_path / "text.npy").write_text("no array")
    good = [[[1, 2]], [[3, 4]]]
    bad = {
        "objects.npy": "Object arrays",
        "cube.npy": "shape",
        "infinite.npy": "infinite",
        "nothing.npy": "no value was measured",
        "text.npy": "",
        "missing.npy": "no file missing.npy",
        "[[1, 2], [3]]": "",
        '[["a", 2]]': "not all entries are numbers",
        "[[1, 2": "",
        "[[1, 2, 3]]": "3 channels, the others have 2",
    }
    manifest = table(tmp_path, [*good, *bad])
    ledger = Ledger()
    found = read_signals(manifest, ledger)
    assert [s is None for s in found.series] == [False] * 2 + [True] * len(bad)
    entries = {Path(entry.item).stem: entry for entry in ledger}
    assert sorted(map(int, entries)) == list(range(2, 2 + len(bad)))
    for number, said in enumerate(bad.values(), 2):
        assert said in entries[str(number)].reason
        assert entries[str(number)].kind == "unreadable signals"


def test_channels_may_be_asked_for(tmp_path) -> None:
    manifest = table(tmp_path, [[[1, 2]], [[3, 4]]])
    ledger = Ledger()
    assert read_signals(manifest, ledger, channels=3).series == [None, None]
    assert len(ledger.entries) == 2


def test_none_at_all_is_an_error(tmp_path) -> None:
    manifest = table(tmp_path, [[["a"]], [["b"]]])
    with pytest.raises(UserError, match="none of the signals"):
        read_signals(manifest, Ledger())
    (tmp_path / "other").mkdir()
    assert not has_signals(table(tmp_path / "other", [None, None]))
