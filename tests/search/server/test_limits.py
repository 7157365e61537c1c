"""The queue, the clock, and clients that leave."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest
from tests.search.server import making

from crossadapt.search.collection import Collections
from crossadapt.search.server.admission import Admission
from crossadapt.search.server.app import create_app
from crossadapt.search.server.failures import Failure
from crossadapt.search.server.settings import Settings

# The beginning of an upload whose rest never comes.
HALF = (
    b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
)


class Held:
    """Holds up the embedding of a server until it is let go."""

    def __init__(self, state, monkeypatch):
        self.started, self.gate = threading.Event(), threading.Event()
        self.texts: list[str] = []
        [engine] = state.catalogue.engines._engines.values()
        plain = engine.embedder.texts

        def slow(texts, views):
            self.texts += texts
            self.started.set()
            self.gate.wait(60)
            return plain(texts, views)

        monkeypatch.setattr(engine.embedder, "texts", slow)


@pytest.fixture
def small(store, app, monkeypatch):
    """A server with three slots, whose embedding can be held up; its clock is set by `hurry`."""
    settings = Settings(
        port=0, queue=3, timeout=60, max_upload=2**20, upload_memory=40_000, reload_seconds=60
    )
    made = create_app(Collections(store), ["plain"], settings, app.state.server.catalogue.engines)
    state = made.state.server
    held = Held(state, monkeypatch)
    with making.serving(made, settings) as address, making.client(address) as client:
        yield client, held, state
        held.gate.set()


def hurry(state, seconds=1.0):
    """From now on a search may take so long; without it, a busy machine is no reason to fail."""
    state.admission.timeout = seconds


def until(condition, seconds=30.0):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def in_background(function, count):
    """Answers of `count` calls in threads, as a list that fills."""
    answers = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(function(n))) for n in range(count)
    ]
    for thread in threads:
        thread.start()
    return answers, threads


def test_a_full_queue_is_429_and_then_works_again(small):
    client, held, state = small
    answers, threads = in_background(lambda n: client.get("/search", params={"q": f"{n}"}), 3)
    until(lambda: state.admission.taken == 3)
    refused = client.get("/search", params={"q": "one too many"})
    assert answers == [], "refused at once, while the others wait"
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "3 searches" in refused.json()["error"]["what"]
    assert client.get("/health").status_code == 200, "what is no search goes on"
    assert client.get("/collections").status_code == 200
    held.gate.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert client.get("/search", params={"q": "again"}).status_code == 200
    assert 'crossadapt_refused_total{reason="queue"} 1.0' in client.get("/metrics").text


def test_a_search_that_takes_too_long_is_503_and_leaves_the_queue(small):
    client, held, state = small
    busy, threads = in_background(lambda n: client.get("/search", params={"q": "busy"}), 1)
    assert held.started.wait(30)
    hurry(state)
    late = client.get("/search", params={"q": "late"})
    assert late.status_code == 503
    assert "longer than 1 seconds" in late.json()["error"]["what"]
    assert late.headers["retry-after"]
    held.gate.set()
    threads[0].join()
    assert busy[0].status_code == 200, "its clock was another"
    hurry(state, 60)
    until(lambda: len(state.batcher) == 0)
    assert client.get("/search", params={"q": "after"}).status_code == 200
    assert "late" not in held.texts, "nobody waited for it any more"
    assert state.admission.taken == 0


def test_a_client_that_leaves_takes_its_query_along(small):
    client, held, state = small
    _, threads = in_background(lambda n: client.get("/search", params={"q": "busy"}), 1)
    assert held.started.wait(30)
    host, port = client.base_url.host, client.base_url.port
    with socket.create_connection((host, port)) as raw:
        raw.sendall(b"GET /search?q=left HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: len(state.batcher) == 1)
    until(lambda: state.admission.taken == 1)
    held.gate.set()
    threads[0].join()
    client.get("/search", params={"q": "after"})
    assert "left" not in held.texts
    assert 'status="499"' in client.get("/metrics").text


def test_a_client_that_leaves_while_sending_frees_its_slot(small):
    client, _held, state = small
    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
        raw.sendall(HALF)
        until(lambda: state.admission.taken == 1 and state.admission.held > 0)
    until(lambda: state.admission.taken == 0 and state.admission.held == 0)


def test_a_slow_upload_is_stopped_by_the_clock(small):
    client, _held, state = small
    hurry(state)
    with socket.create_connection((client.base_url.host, client.base_url.port), 60) as raw:
        raw.sendall(HALF)
        answer = raw.recv(65_536)
        while b"}}" not in answer and (more := raw.recv(65_536)):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"longer than 1 seconds" in body
    until(lambda: state.admission.taken == state.admission.held == 0)


def test_uploads_share_a_limited_memory(small):
    client, _held, state = small
    picture = {"image": ("a.png", bytes(60_000))}
    answer = client.post("/search", files=picture)
    assert answer.status_code == 429
    assert "uploaded" in answer.json()["error"]["what"]
    assert answer.headers["retry-after"]
    assert state.admission.held == 0


def test_slots_and_bytes_come_back_after_errors():
    reasons = []
    admission = Admission(1, 100, 1.0, reasons.append)

    def fails():
        with admission.slot(), admission.upload() as arrived:
            arrived(60)
            with pytest.raises(Failure) as caught, admission.slot():
                pass
            assert caught.value.status == 429
            with pytest.raises(Failure):
                arrived(41)
            assert (admission.taken, admission.held) == (1, 60)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (admission.taken, admission.held) == (0, 0)
    assert reasons == ["queue", "uploads"]


def test_a_timeout_of_the_work_itself_is_not_ours():
    async def work():
        raise TimeoutError("the disk")

    with pytest.raises(TimeoutError, match="the disk"):
        asyncio.run(Admission(1, 1, 5.0).in_time(work()))
