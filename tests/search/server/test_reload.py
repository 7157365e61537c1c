"""A rebuilt collection is served without a dropped request; one that does not fit is not."""

from __future__ import annotations

import shutil
import threading
import time

import pytest
from tests.search.server import making

from crossadapt.search.card import Card
from crossadapt.search.collection import Collections
from crossadapt.search.embedder import Embedder
from crossadapt.search.server.app import create_app


@pytest.fixture
def own(tmp_path, adapters, settings):
    """A collection that may be changed, and a server of its own on it."""
    home = Collections(tmp_path / "store")
    folder = tmp_path / "adapter"
    shutil.copytree(adapters["a"], folder)
    making.make_collection(home, "own", {"mine": folder}, tmp_path / "p", 24)
    app = create_app(Collections(home.uri), ["own"], settings)
    with making.serving(app, settings) as address, making.client(address) as client:
        yield home, folder, client, app.state.server


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def facts(client):
    [found] = client.get("/collections").json()
    return found


def test_no_request_is_dropped_while_rows_come_and_go(own):
    home, folder, client, _state = own
    embedder = Embedder.open("tiny:clip", {"mine": folder}, device="cpu", precision="fp32")
    names = {"frozen": "frozen", "mine": "mine"}
    rows = making.make_rows(embedder, names, folder.parent / "more", 40)
    stop, answers = threading.Event(), []

    def ask():
        with making.client(str(client.base_url)) as mine:
            while not stop.is_set():
                answer = mine.get("/search", params={"q": "a red square", "k": 100, "compare": 1})
                answers.append((answer.status_code, len(answer.json().get("hits", []))))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    with home.open("own", write=True) as writer:
        writer.upsert(rows)
    until(lambda: facts(client)["rows"] == 40)
    with home.open("own", write=True) as writer:
        writer.delete(rows["id"].to_pylist()[:30])
        writer.maintain(keep_seconds=3600)
    until(lambda: facts(client)["rows"] == 10)
    until(lambda: answers[-1][1] == 10)
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert {count for _, count in answers} == {24, 40, 10}, "whole versions only"
    metrics = client.get("/metrics").text
    assert 'crossadapt_collection_rows{collection="own"} 10.0' in metrics


def test_a_collection_embedded_with_a_new_adapter(own, adapters):
    home, folder, client, state = own
    shutil.rmtree(folder)
    shutil.copytree(adapters["b"], folder)
    embedder = Embedder.open("tiny:clip", {"mine": folder}, device="cpu", precision="fp32")
    before = facts(client)["views"][1]["fingerprint"]
    rows = making.make_rows(embedder, {"frozen": "frozen", "mine": "mine"}, folder.parent / "p", 24)
    with home.open("own", write=True) as writer:
        writer.upsert(rows)
        writer.update_card(views=(writer.card.views[0], embedder.view("mine")))
    until(lambda: facts(client)["views"][1]["fingerprint"] != before)
    top = client.get("/search", params={"q": "a red square", "k": 1}).json()["hits"][0]
    vector = embedder.texts(["a red square"], "mine")[0]
    assert home.open("own").search(vector, 1, view="mine").ids == [top["id"]]
    [engine] = state.catalogue.engines._engines.values()
    until(lambda: len(engine.embedder.names) == 1), "the old adapter is freed"
    assert [entry["fingerprint"] for entry in client.get("/adapters").json()] == [
        embedder.fingerprint("mine")
    ]


def test_a_version_whose_model_is_gone_is_not_served(own, caplog):
    home, _folder, client, _state = own
    first = facts(client)["health"]["version"]
    with home.open("own", write=True) as writer:
        frozen, mine = writer.card.views
        changed = Card.from_json(writer.card.to_json()).views[1]
        writer.update_card(views=(frozen, type(changed)(**{**vars(mine), "fingerprint": "f" * 64})))
    until(lambda: facts(client)["health"]["problem"])
    assert facts(client)["health"]["version"] == first
    assert client.get("/search", params={"q": "still works"}).status_code == 200
    said = [r for r in caplog.records if "is not reloaded" in r.getMessage()]
    assert len(said) == 1, "said once, not at every look"
    with home.open("own", write=True) as writer:
        writer.update_card(views=(frozen, mine))
    until(lambda: facts(client)["health"]["problem"] is None)
    assert facts(client)["health"]["version"] > first


def test_a_collection_dropped_and_made_again(own, tmp_path):
    home, folder, client, _state = own
    home.drop("own")
    until(lambda: facts(client)["health"]["problem"])
    answer = client.get("/search", params={"q": "between"})
    assert answer.status_code in (200, 503), answer.text
    making.make_collection(home, "own", {"mine": folder}, tmp_path / "new", 12)
    until(lambda: facts(client)["rows"] == 12)
    answer = client.get("/search", params={"q": "again", "k": 50})
    assert len(answer.json()["hits"]) == 12
