"""Stopping: requests that are under way are finished, new connections are not taken."""

from __future__ import annotations

import threading
import time

import httpx
import pytest
from tests.search.server import making

from crossadapt.search.collection import Collections
from crossadapt.search.server.app import create_app
from crossadapt.search.server.pages import page_files, router
from crossadapt.search.server.running import make_server, take_port


def test_running_requests_are_finished(store, app, settings, monkeypatch):
    engines = app.state.server.catalogue.engines
    made = create_app(Collections(store), ["plain"], settings, engines)
    [engine] = engines._engines.values()
    plain, started = engine.embedder.texts, threading.Event()

    def slow(texts, views):
        started.set()
        time.sleep(0.6)
        return plain(texts, views)

    monkeypatch.setattr(engine.embedder, "texts", slow)
    taken = take_port("127.0.0.1", 0)
    address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    server = make_server(made, settings)
    running = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    running.start()
    while not server.started:
        time.sleep(0.01)
    answers = []

    def ask():
        with making.client(address) as client:
            answers.append(client.get("/search", params={"q": "last"}).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    assert started.wait(30)
    server.should_exit = True
    asking.join(60)
    running.join(60)
    assert answers == [200]
    assert not running.is_alive()
    with making.client(address) as client, pytest.raises(httpx.ConnectError):
        client.get("/health")
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name == "crossadapt-embed" for name in names) <= 1, "only the shared server's"


def test_the_page_is_read_once_from_a_fixed_list(tmp_path):
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException

    from crossadapt.search.server.failures import add_handlers

    (tmp_path / "parts").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "parts" / "grid.js").write_text("export {}")
    (tmp_path / "notes.py").write_text("secret")
    found = page_files(tmp_path)
    assert set(found) == {"index.html", "parts/grid.js"}
    site = FastAPI()
    site.include_router(router(found))
    add_handlers(site)
    assert HTTPException in site.exception_handlers
    with making.serving(site, making.Settings(port=0)) as address, making.client(address) as client:
        start = client.get("/")
        assert start.text == "<!doctype html>"
        assert "script-src 'self'" in start.headers["content-security-policy"]
        script = client.get("/page/parts/grid.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert script.headers["cache-control"] == "no-cache"
        again = client.get("/page/parts/grid.js", headers={"If-None-Match": script.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        (tmp_path / "late.js").write_text("late")
        assert client.get("/page/late.js").status_code == 404
        assert client.get("/page/notes.py").status_code == 404
        assert client.head("/").status_code == 200
