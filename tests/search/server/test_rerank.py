"""The second stage of a search over HTTP: same answers as the library, its cost, its refusals."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.adapting import train
from tests.search.server import making

import crossadapt
from crossadapt.adapters.registry import make_config
from crossadapt.search.collection import Collections
from crossadapt.search.embedder import Embedder
from crossadapt.search.query import Query, Searcher, prepare
from crossadapt.search.reranking import Reranker
from crossadapt.search.server.app import create_app
from crossadapt.search.server.searching import search
from crossadapt.search.server.settings import MOST_JUDGED, Settings

WORDS = "a red square"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """UniAdapter on the tiny BLIP, trained so far that it changes the match logits."""
    backbone = crossadapt.load("tiny:blip")
    attached = crossadapt.attach(backbone, make_config("uniadapter", {"r": 4, "init": "released"}))
    train(backbone, attached, steps=3)
    return crossadapt.save_adapter(backbone, "default", tmp_path_factory.mktemp("uni") / "a")


@pytest.fixture(scope="module")
def home(tmp_path_factory, adapter):
    """``pairs`` on a BLIP, ``plain`` on a CLIP."""
    folder = tmp_path_factory.mktemp("rerank")
    home = Collections(folder / "collections")
    making.make_collection(home, "pairs", {"u": adapter}, folder / "a", 24, backbone="tiny:blip")
    making.make_collection(home, "plain", {}, folder / "b", 6)
    (folder / "a" / "0005.png").write_bytes(b"another file")
    return home


@pytest.fixture(scope="module")
def app(home):
    return create_app(home, ["pairs", "plain"], Settings(port=0, timeout=60))


@pytest.fixture(scope="module")
def http(app):
    with making.serving(app, Settings(port=0, timeout=60)) as where, making.client(where) as client:
        yield client


@pytest.fixture(scope="module")
def searcher(home, adapter):
    embedder = Embedder.open("tiny:blip", {"u": adapter}, device="cpu", precision="fp32")
    return Searcher(home.open("pairs"), embedder)


def ask(http, **fields):
    return http.get("/search", params={"collection": "pairs", "q": WORDS, **fields})


@pytest.mark.parametrize("view", ["u", "frozen"])
@pytest.mark.parametrize(("k", "rerank"), [(4, 12), (12, 4), (10, 10)])
def test_the_answer_is_what_the_library_finds(http, searcher, view, k, rerank):
    answer = ask(http, view=view, k=k, rerank=rerank)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    wanted = searcher.search(Query(text=WORDS, view=view, k=k, rerank=rerank)).hits
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in wanted]
    assert [hit["rank"] for hit in found["hits"]] == list(range(1, k + 1))
    for hit, right in zip(found["hits"], wanted, strict=True):
        assert (hit["match"] is None) == (right.match is None)
        if right.match is not None:
            assert hit["match"] == pytest.approx(right.match, abs=1e-4)
    judged = [hit["match"] for hit in found["hits"] if hit["match"] is not None]
    assert judged == sorted(judged, reverse=True)
    took = found["took_ms"]
    assert took["rerank"] > 0
    assert took["search"] > 0
    assert took["embed"] + took["search"] + took["rerank"] <= took["total"] + 0.1


def test_views_judge_with_their_own_adapter_and_the_changed_file_is_told(http):
    answers = [ask(http, view=view, k=24, rerank=24).json() for view in ("u", "frozen")]
    by_view = [{hit["id"]: hit["match"] for hit in answer["hits"]} for answer in answers]
    missing = [[name for name, match in found.items() if match is None] for found in by_view]
    assert missing[0] == missing[1]
    assert len(missing[0]) == 1
    assert all(answer["hits"][-1]["name"] == "0005.png" for answer in answers)
    assert all("1 of 24 hits could not be judged" in answer["notes"][0] for answer in answers)
    both = [[found[name] for name in by_view[0] if found[name] is not None] for found in by_view]
    assert np.abs(np.subtract(*both)).max() > 1e-3


def test_without_rerank_nothing_is_judged_and_it_costs_nothing(http):
    found = ask(http).json()
    assert found["took_ms"]["rerank"] == 0
    assert all(hit["match"] is None for hit in found["hits"])


def test_a_model_without_fusion_tower_is_refused_before_it_runs(http, app, monkeypatch):
    monkeypatch.setattr(app.state.server.batcher, "submit", None)  # would be a 500
    answer = http.get("/search", params={"collection": "plain", "q": "x", "rerank": 3})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert "re-ranking needs a backbone with a fusion tower" in error["what"]
    assert "BLIP" in error["fix"]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"rerank": MOST_JUDGED + 1}, "rerank"),
        ({"rerank": -1}, "rerank"),
        ({"rerank": "many"}, "rerank"),
        ({"rerank": 3, "compare": True}, "compare"),
        ({"rerank": 3, "exclude": "blue"}, "exclude"),
        ({"rerank": 3, "strength": 0.5}, "strength"),
        ({"rerank": 3, "q": "", "like": "0" * 32}, "rerank"),
    ],
)
def test_what_cannot_be_judged_is_refused(http, fields, where):
    answer = ask(http, **fields)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["where"] == where


def test_a_picture_cannot_be_judged_against_pictures(http):
    picture = making.encoded(making.picture(1))
    answer = http.post("/search", data={"collection": "pairs", "q": "x", "rerank": "3"},
                       files={"image": picture})  # fmt: skip
    assert answer.status_code == 422
    assert answer.json()["error"]["where"] == "image"


def test_as_many_as_allowed_and_as_a_form(http):
    fields = {"collection": "pairs", "q": WORDS, "rerank": str(MOST_JUDGED), "k": "3"}
    sent = http.post("/search", files={name: (None, value) for name, value in fields.items()})
    assert sent.status_code == 200, sent.text
    plain = ask(http, rerank=MOST_JUDGED, k=3).json()
    assert [hit["id"] for hit in sent.json()["hits"]] == [hit["id"] for hit in plain["hits"]]


def test_it_is_described(http):
    schema = http.get("/openapi.json").json()
    [field] = [p for p in schema["paths"]["/search"]["get"]["parameters"] if p["name"] == "rerank"]
    assert (field["schema"]["minimum"], field["schema"]["maximum"]) == (0, MOST_JUDGED)
    form = schema["paths"]["/search"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["properties"]["rerank"]["maximum"] == MOST_JUDGED
    offered = {one["name"]: one["rerank"] for one in http.get("/collections").json()}
    assert offered == {"pairs": True, "plain": False}


def test_plain_searches_beside_it_find_the_same(http):
    alone = ask(http, view="u").json()["hits"]
    judged = ask(http, view="frozen", rerank=24, k=5).json()["hits"]

    def one(number: int):
        more = {"view": "frozen", "rerank": 24, "k": 5} if number % 3 == 0 else {"view": "u"}
        return number % 3 == 0, ask(http, **more).json()["hits"]

    with ThreadPoolExecutor(6) as pool:
        for second_stage, hits in pool.map(one, range(18)):
            wanted = judged if second_stage else alone
            assert [hit["id"] for hit in hits] == [hit["id"] for hit in wanted]


def test_judging_ends_when_nobody_waits(home, searcher):
    prepared = prepare(Query(text=WORDS, rerank=24, k=24), home.open("pairs"))
    hits = searcher.search(Query(text=WORDS, k=24)).hits
    asked = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 9

    reranker = Reranker(searcher.collection, searcher.embedder, stopped=stopped)
    with pytest.raises(TimeoutError):
        reranker.rerank(prepared, hits)
    assert len(asked) == 10


def test_a_client_that_leaves_stops_it(app, monkeypatch):
    """The event that the judging thread looks at is set when the request is cancelled."""
    begun, seen, ended = threading.Event(), [], threading.Event()

    def slow(self, prepared, hits):
        begun.set()
        for _ in range(1000):
            seen.append(self.stopped())
            if seen[-1]:
                break
            ended.wait(0.005)
        ended.set()
        raise TimeoutError

    monkeypatch.setattr(Reranker, "rerank", slow)
    state = app.state.server

    async def leave() -> None:
        with state.catalogue.using("pairs") as served:
            task = asyncio.create_task(search(state, served, Query(text=WORDS, rerank=5)))
            await asyncio.to_thread(begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(ended.wait, 10)

    asyncio.run(leave())
    assert seen[-1] is True
