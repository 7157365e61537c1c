"""What ``crossadapt demo`` does around its training; the training itself is in test_commands."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from crossadapt.cli import demo, serve, train
from crossadapt.cli.main import main


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """What was called, with training, indexing and serving left out, at a terminal."""
    called: list[object] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_attended", lambda: True)
    monkeypatch.setattr(train, "run", lambda job: called.append("train") or 0)
    monkeypatch.setattr(demo, "_index", lambda given: called.append("index"))
    monkeypatch.setattr(serve, "run", lambda options: called.append(options) or 0)
    return called


def test_at_a_terminal_it_ends_at_the_page(calls: list[object]) -> None:
    assert main(["demo", "--port", "0"]) == 0
    assert calls[:2] == ["train", "index"]
    options = calls[2]
    assert isinstance(options, serve.ServeOptions)
    assert options.names == ("openmoji",)
    assert options.store == str(Path("runs/demo/collections"))
    assert options.open
    assert options.port == 0


def test_no_serve_stops_before_the_page(
    calls: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--no-serve", "--output", "my demo"]) == 0
    assert calls == ["train", "index"]
    said = capsys.readouterr().out
    assert "crossadapt serve openmoji --store 'my demo/collections' --open" in said


def test_nobody_at_a_terminal_is_not_waited_for(
    calls: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_attended", lambda: False)
    assert main(["demo"]) == 0
    assert calls == ["train", "index"]


def test_a_port_in_use_is_said_before_training(
    calls: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["demo", "--port", str(other.getsockname()[1])]) == 1
    assert calls == []
    assert "is in use" in capsys.readouterr().err
