"""Every route of the API, against a running server."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tests.search.server import making

from crossadapt.search.collection import Collections
from crossadapt.search.embedder import Embedder
from crossadapt.search.query import Query, Searcher


@pytest.fixture(scope="module")
def searcher(store, adapters):
    """What the server has to agree with: one process, one query at a time."""
    embedder = Embedder.open("tiny:clip", adapters, device="cpu", precision="fp32")
    return Searcher(Collections(store).open("shapes"), embedder)


def same_hits(found, expected):
    """Same items in the same order with the same scores."""
    assert [hit["id"] for hit in found] == [hit.id for hit in expected]
    np.testing.assert_allclose(
        [hit["cosine"] for hit in found], [hit.cosine for hit in expected], atol=1e-5
    )
    np.testing.assert_allclose(
        [hit["calibrated"] for hit in found], [hit.calibrated for hit in expected], atol=0.006
    )


@pytest.mark.parametrize(
    ("asked", "query"),
    [
        ({"q": "a red square"}, Query(text="a red square")),
        ({"q": "a bar", "view": "a", "k": 3}, Query(text="a bar", view="a", k=3)),
        (
            {"q": "a bar", "view": "a", "strength": 0.4, "filter": 'colour = "red"'},
            Query(text="a bar", view="a", strength=0.4, filter='colour = "red"'),
        ),
        ({"q": "door", "exclude": "blue", "exact": "true"}, Query(text="door", exclude="blue")),
        ({"q": "a 🦊 شارع", "view": "frozen"}, Query(text="a 🦊 شارع", view="frozen")),
    ],
)
def test_a_search_is_what_the_library_finds(http, searcher, asked, query):
    answer = http.get("/search", params={"collection": "shapes", **asked})
    assert answer.status_code == 200, answer.text
    found, expected = answer.json(), searcher.search(query)
    same_hits(found["hits"], expected.hits)
    assert (found["view"], found["plan"], found["passing"], found["searched"]) == (
        expected.view, expected.plan, expected.passing, expected.searched,
    )  # fmt: skip
    assert found["k"] == query.k
    assert found["frozen_hits"] is None
    assert found["took_ms"]["total"] >= found["took_ms"]["search"] > 0


def test_a_hit_says_what_the_page_shows(http):
    answer = http.get(
        "/search",
        params={"collection": "shapes", "q": "x", "filter": "number = 7", "compare": True},
    ).json()
    [hit] = answer["hits"]
    assert hit["name"] == "0007.png"
    assert hit["texts"] == ["a green circle, number 7"]
    assert hit["attributes"] == {
        "colour": "green", "shape": "circle", "number": 7, "filled": True,
    }  # fmt: skip
    assert (hit["width"], hit["height"], hit["kind"]) == (48, 48, "image")
    assert hit["rank"] == hit["frozen_rank"] == 1
    assert hit["start"] is None
    assert answer["frozen_hits"][0]["id"] == hit["id"]
    assert hit["thumbnail"] == f"/thumbnail/{hit['id']}?collection=shapes"


def test_a_picture_finds_itself_and_compares(http, searcher):
    content = making.encoded(making.picture(17))
    answer = http.post(
        "/search",
        files={"image": ("mine.png", content, "image/png")},
        data={"collection": "shapes", "compare": "true", "k": "4"},
    )
    assert answer.status_code == 200, answer.text
    expected = searcher.search(Query(image=content, compare=True, k=4))
    same_hits(answer.json()["hits"], expected.hits)
    same_hits(answer.json()["frozen_hits"], expected.frozen_hits)
    ranks = [hit["frozen_rank"] for hit in answer.json()["hits"]]
    assert ranks == [hit.frozen_rank for hit in expected.hits]
    assert answer.json()["hits"][0]["name"] == "0017.png"


def test_words_and_a_picture_are_weighted(http, searcher):
    content = making.encoded(making.picture(3), "JPEG")
    data = {"collection": "shapes", "q": "a blue circle", "weight": "0.3"}
    answer = http.post("/search", files={"image": ("p.jpg", content)}, data=data)
    expected = searcher.search(Query(text="a blue circle", image=content, weight=0.3))
    same_hits(answer.json()["hits"], expected.hits)


def test_a_form_without_a_picture_is_a_text_search(http):
    form = {"collection": (None, "shapes"), "q": (None, "a red square")}
    by_form = http.post("/search", files=form).json()
    by_query = http.get("/search", params={"collection": "shapes", "q": "a red square"}).json()
    assert by_form["hits"] == by_query["hits"]


def test_more_like_this_leaves_the_item_out(http, searcher):
    one = http.get("/search", params={"collection": "shapes", "q": "x"}).json()["hits"][0]["id"]
    found = http.get("/search", params={"collection": "shapes", "like": one}).json()
    same_hits(found["hits"], searcher.search(Query(like=one)).hits)
    assert one not in [hit["id"] for hit in found["hits"]]
    item = http.get(f"/items/{one}", params={"collection": "shapes", "neighbours": 10}).json()
    assert [hit["id"] for hit in item["neighbours"]] == [hit["id"] for hit in found["hits"]]


def test_an_item_tells_all_that_is_stored_but_not_where(http, store):
    [known] = Collections(store).open("shapes").search(np.ones((1, 12)), 1)
    answer = http.get(f"/items/{known.ids[0]}", params={"collection": "shapes", "neighbours": 0})
    item = answer.json()
    number = item["attributes"]["number"]
    content = making.encoded(making.picture(number))
    assert item["name"] == f"{number:04}.png"
    assert item["bytes"] == len(content)
    assert item["added"] == "2026-01-01T00:00:00+00:00"
    assert item["group"] == str(number)
    assert item["neighbours"] == []
    assert http.get(item["file"]).content == content
    small = http.get(item["thumbnail"])
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.content)).size == (24, 24)
    again = http.get(item["thumbnail"], headers={"If-None-Match": small.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    assert str(store.parent) not in answer.text


def test_collections_and_adapters(http):
    shapes, plain = http.get("/collections").json()
    assert (shapes["name"], shapes["rows"], shapes["dim"]) == ("shapes", 96, 12)
    assert [view["name"] for view in shapes["views"]] == ["frozen", "a", "b"]
    assert shapes["default_view"] == "b"
    assert shapes["attributes"] == making.ATTRIBUTES
    assert len(set(shapes["examples"])) == 8
    assert shapes["health"]["ledger"] == {"count": 1, "reasons": {"truncated": 1}}
    assert (shapes["health"]["index"], shapes["health"]["recall"]) == ("exact", 1.0)
    assert plain["default_view"] == "frozen"
    first, second = http.get("/adapters").json()
    assert (first["name"], second["name"]) == ("a", "b")
    assert first["method"] == "cross-modal-adapter"
    assert first["collections"] == ["shapes"]
    assert first["trained"] == shapes["views"][1]["trained"] > 0
    import crossadapt

    total = sum(p.numel() for p in crossadapt.load("tiny:clip").parameters())
    assert first["share"] == pytest.approx(first["trained"] / total)


def test_facets_count_what_passes(http):
    found = http.get("/collections/shapes/facets").json()
    assert found["passing"] == 96
    assert {entry["value"]: entry["count"] for entry in found["facets"]["colour"]} == dict.fromkeys(
        making.COLOURS, 16
    )
    some = http.get("/collections/shapes/facets", params={"filter": "number < 12"}).json()
    assert some["passing"] == 12
    assert {e["value"]: e["count"] for e in some["facets"]["shape"]} == {"square": 6, "circle": 6}
    none = http.get("/collections/shapes/facets", params={"filter": "number > 1000"}).json()
    assert none["passing"] == 0
    assert none["facets"]["colour"] == []


def test_the_schema_has_an_example_and_every_error(http):
    schema = http.get("/openapi.json").json()
    search = schema["paths"]["/search"]
    assert set(search) == {"get", "post"}
    assert {"422", "429", "503"} <= set(search["get"]["responses"])
    assert {"413", "415"} <= set(search["post"]["responses"])
    form = search["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["image"]["format"] == "binary"
    assert schema["components"]["schemas"]["SearchOut"]["examples"]
    for operations in schema["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
    assert http.get("/docs").status_code == 404


def test_metrics_count_requests_rows_and_batches(http):
    def value(name):
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    name = 'crossadapt_requests_total{method="GET",route="/items/{id}",status="404"}'
    before, batches = value(name), value("crossadapt_batch_rows_count")
    http.get("/items/abc", params={"collection": "shapes"})
    http.get("/search", params={"collection": "shapes", "q": "counted", "compare": True})
    assert value(name) == before + 1
    assert value("crossadapt_batch_rows_count") == batches + 1
    assert value('crossadapt_collection_rows{collection="plain"}') == 30
    assert value('crossadapt_collection_index_recall{collection="shapes"}') == 1
    assert value("crossadapt_searches") == value("crossadapt_queue_depth") == 0
    assert value('crossadapt_request_seconds_count{route="/search"}') >= 1
    assert "text/plain" in http.get("/metrics").headers["content-type"]
