"""``crossadapt serve`` as a user runs it: a process, a port, a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from tests.search.server import making

from crossadapt.cli import serve
from crossadapt.cli.main import main
from crossadapt.errors import UserError
from crossadapt.search.card import FORMAT, Card
from crossadapt.search.collection import Collections
from crossadapt.search.server.running import address_of, listen, take_port


def test_a_port_in_use_is_said_before_anything_is_loaded(store, capsys, monkeypatch):
    monkeypatch.setattr("crossadapt.search.server.app.create_app", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "plain", "--store", str(store), "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"port {port} is in use" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["plian"], "plian"),
        (["plain", "--host", "0.0.0.0"], "no token"),
        (["plain", "--host", "no.such.host.invalid", "--no-token"], "there is no address"),
        (["plain", "--port", "99999"], "port is 99999"),
        (["plain", "--token", "short"], "5 characters"),
        (["plain", "--prot", "1"], "--port"),
        ([], "no collection was named"),
    ],
)
def test_what_cannot_be_served_is_explained(store, capsys, monkeypatch, args, what):
    monkeypatch.setattr("crossadapt.search.server.app.create_app", None)
    monkeypatch.delenv(serve.TOKEN, raising=False)
    assert main(["serve", *args, "--store", str(store)]) == 1
    assert what in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve", "newer"], ["search", "newer", "a red door"]])
def test_a_collection_of_a_newer_version_is_refused(tmp_path, capsys, command):
    card = Card("newer", 8, "tiny:clip")
    later = json.loads(card.to_json()) | {"format": FORMAT + 1}
    Collections(tmp_path).store.create("newer", card.schema, json.dumps(later))
    assert main([*command, "--store", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"has format {FORMAT + 1}" in said
    assert "upgrade" in said


def test_a_taken_port_is_given_back_and_named():
    taken = take_port("127.0.0.1", 0)
    port = taken.getsockname()[1]
    assert address_of(taken) == f"http://127.0.0.1:{port}"
    also = take_port("127.0.0.1", port)  # the system allows it as long as nobody listens
    listen(taken)
    with pytest.raises(UserError, match=f"port {port} is in use"):
        listen(also)
    taken.close()
    also.close()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_it_serves_and_stops_at_a_signal(tmp_path):
    store = tmp_path / "store"
    # Not a tiny backbone: its tokenizer is trained anew, and differently, in every process.
    making.make_collection(Collections(store), "plain", {}, tmp_path / "p", 8, "pico-clip")
    environment = {**os.environ, serve.TOKEN: "a-token-from-the-environment"}
    command = [sys.executable, "-m", "crossadapt.cli.main", "serve", "plain", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--store", str(store), "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with process:
        try:
            lines = iter(process.stdout.readline, "")
            shown = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in lines)
            found = next(filter(None, shown), None)
            assert found, process.stderr.read()
            with making.client(found[0]) as client:
                assert client.get("/search", params={"q": "x"}).status_code == 401
                right = {"Authorization": "Bearer a-token-from-the-environment"}
                assert client.get("/search", params={"q": "x"}, headers=right).status_code == 200
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert out.endswith("stopped\n")
    assert "Traceback" not in err
