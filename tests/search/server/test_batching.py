"""Queries that are embedded together come out as if each had been alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
from tests.search.server import making

from crossadapt.search.collection import Collections
from crossadapt.search.embedder import Embedder
from crossadapt.search.query import Query, embed, prepare
from crossadapt.search.request import Prepared
from crossadapt.search.server.batching import Batcher

SAME = {name: name for name in ("frozen", "a", "b")}


def words(*texts, views=("frozen",), pixels=None):
    """A prepared query of these parts."""
    return Prepared(Query(text="x"), views[0], tuple(views), tuple(texts), pixels)


class Recorder:
    """An encoder whose vectors say what was encoded, and which waits until it is let go."""

    def __init__(self):
        self.calls, self.gate = [], threading.Event()
        self.gate.set()

    def texts(self, texts, views):
        self.calls.append(list(zip(texts, views, strict=True)))
        self.gate.wait(60)
        if "poison" in texts:
            raise ValueError("poison")
        return np.array([[len(t), len(v)] for t, v in zip(texts, views, strict=True)], np.float32)

    def pictures(self, pixels, views):
        self.calls.append(list(views))
        return np.stack([[p.sum(), len(v)] for p, v in zip(pixels, views, strict=True)])


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def batcher():
    made = Batcher(wait=0.05, most=8)
    yield made
    made.close()


def busy(recorder, batcher):
    """A query that is being encoded until the gate opens: what comes now waits behind it."""
    recorder.gate.clear()
    job = batcher.submit(recorder, words("busy"), SAME)
    while not recorder.calls:
        time.sleep(0.001)
    return job


def test_what_waits_together_is_encoded_together(recorder, batcher):
    busy(recorder, batcher)
    picture = np.ones((1, 3, 2, 2), np.uint8)
    jobs = [
        batcher.submit(recorder, words("red", views=("a",)), SAME),
        batcher.submit(recorder, words("green", "not", views=("b", "frozen")), SAME),
        batcher.submit(recorder, words(views=("b",), pixels=picture), SAME),
        batcher.submit(recorder, words("red", views=("a",)), SAME),
    ]
    recorder.gate.set()
    first, second, third, fourth = [job.result(30) for job in jobs]
    _, texts, pictures = recorder.calls
    assert texts == [
        ("red", "a"), ("green", "b"), ("not", "b"), ("green", "frozen"), ("not", "frozen"),
    ]  # fmt: skip
    assert pictures == ["b"]
    np.testing.assert_array_equal(first["a"]["texts"], [[3, 1]])
    np.testing.assert_array_equal(second["frozen"]["texts"], [[5, 6], [3, 6]])
    np.testing.assert_array_equal(third["b"]["pixels"], [[12, 1]])
    assert "texts" not in third["b"]
    np.testing.assert_array_equal(fourth["a"]["texts"], first["a"]["texts"])


def test_a_full_batch_does_not_wait_and_is_not_exceeded(recorder):
    sizes = []
    batcher = Batcher(wait=60, most=4, on_batch=lambda rows, seconds: sizes.append(rows))
    began = time.monotonic()
    jobs = [batcher.submit(recorder, words(f"{n}", "x"), SAME) for n in range(4)]
    for job in jobs:
        job.result(30)
    batcher.close()
    assert time.monotonic() - began < 60
    assert sizes == [4, 4]


def test_a_larger_query_than_a_batch_is_encoded_alone(recorder, batcher):
    texts = [f"text {n}" for n in range(20)]
    found = batcher.submit(recorder, words(*texts), SAME).result(30)
    assert len(found["frozen"]["texts"]) == 20


def test_one_bad_query_does_not_take_the_others_along(recorder, batcher):
    jobs = [batcher.submit(recorder, words(text), SAME) for text in ("one", "poison", "three")]
    assert jobs[0].result(30)["frozen"]["texts"][0, 0] == 3
    assert jobs[2].result(30)["frozen"]["texts"][0, 0] == 5
    with pytest.raises(ValueError, match="poison"):
        jobs[1].result(30)


def test_a_cancelled_query_leaves_the_queue(recorder, batcher):
    first = busy(recorder, batcher)
    gone, stays = (batcher.submit(recorder, words(text), SAME) for text in ("gone", "stays"))
    assert len(batcher) == 2
    assert gone.cancel()
    recorder.gate.set()
    assert stays.result(30)["frozen"]["texts"][0, 0] == 5
    assert first.result(30)
    with pytest.raises(CancelledError):
        gone.result(30)
    assert [text for call in recorder.calls for text, _ in call] == ["busy", "stays"]


def test_closing_answers_what_is_queued(recorder):
    batcher = Batcher(wait=60)
    jobs = [batcher.submit(recorder, words(str(n)), SAME) for n in range(5)]
    batcher.close()
    assert all(job.done() and job.result() for job in jobs)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(recorder, words("late"), SAME)


def test_mixed_adapters_in_one_batch_equal_each_alone(store, adapters, monkeypatch):
    """Acceptance 5: two adapters at once over one backbone, text and pictures mixed."""
    home = Collections(store)
    embedder = Embedder.open("tiny:clip", adapters, device="cpu", precision="fp32")
    collection = home.open("shapes")
    queries = [
        prepare(
            Query(
                text=f"a {making.COLOURS[n % 6]} thing" if n % 3 else "",
                image=making.encoded(making.picture(n)) if n % 2 or not n % 3 else None,
                view=("frozen", "a", "b")[n % 3],
                compare=n % 5 == 0,
            ),
            collection,
            transform=embedder.prepare,
        )
        for n in range(12)
    ]
    passes = []
    plain = embedder.backbone.encode_text
    monkeypatch.setattr(
        embedder.backbone,
        "encode_text",
        lambda ids, mask: passes.append(len(ids)) or plain(ids, mask),
    )
    # Full when the last one has come, so that no clock decides.
    rows = sum((len(q.texts) + (q.pixels is not None)) * len(q.views) for q in queries)
    batcher = Batcher(wait=60, most=rows)
    jobs = [batcher.submit(embedder, query, SAME) for query in queries]
    found = [job.result(60) for job in jobs]
    batcher.close()
    assert len(passes) == 1, "all texts in one forward pass"
    monkeypatch.undo()
    # Alone means: an embedder that has only this one adapter.
    single = {
        name: Embedder.open("tiny:clip", {name: folder}, device="cpu", precision="fp32")
        for name, folder in adapters.items()
    }
    for query, vectors in zip(queries, found, strict=True):
        expected = embed(query, single.get(query.view, embedder))
        assert vectors.keys() == expected.keys()
        for view, parts in expected.items():
            assert vectors[view].keys() == parts.keys()
            for part, rows in parts.items():
                np.testing.assert_allclose(vectors[view][part], rows, atol=1e-5)
    apart = [found[n]["a"]["texts"] for n in (1, 4)] + [found[2]["b"]["texts"]]
    assert np.abs(apart[0] - apart[2]).max() > 1e-3
