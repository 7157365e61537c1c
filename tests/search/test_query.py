from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from tests.data.zoo import bomb, jpeg, picture
from tests.search.query_world import World, world

from crossadapt.data.openmoji import picture_bytes
from crossadapt.errors import UserError
from crossadapt.search.query import Limits, Query, Searcher, embed, prepare, rank, without

pytestmark = pytest.mark.xdist_group("query")  # the world is made once per process


@pytest.fixture(scope="module")
def emoji() -> World:
    return world()


@pytest.fixture(scope="module")
def searcher(emoji: World) -> Searcher:
    return Searcher(emoji.collection, emoji.embedder)


def ids(result) -> list[str]:
    return [hit.id for hit in result.hits]


def stored(emoji: World, view: str) -> tuple[list[str], np.ndarray]:
    """Ids and vectors (N, D), read past the code under test."""
    table = emoji.collection._now().table
    found = {
        row["id"]: row[f"vector_{view}"]
        for batch in table.scan(["id", f"vector_{view}"])
        for row in batch.to_pylist()
    }
    return list(found), np.array(list(found.values()), np.float32)


def ranking(emoji: World, vector: np.ndarray, view: str) -> list[str]:
    names, vectors = stored(emoji, view)
    return [names[row] for row in np.argsort(-(vectors @ vector), kind="stable")]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_text_finds_what_it_names(emoji: World, searcher: Searcher) -> None:
    result = searcher.search(Query("red apple", k=5))
    assert result.hits[0].id == emoji.ids["apple"]
    assert [hit.rank for hit in result.hits] == [1, 2, 3, 4, 5]
    vector = emoji.embedder.texts(["red apple"], "nudged")[0]
    assert ids(result) == ranking(emoji, vector, "nudged")[:5]
    best = result.hits[0]
    names, vectors = stored(emoji, "nudged")
    assert best.cosine == pytest.approx(float(vectors[names.index(best.id)] @ vector), abs=1e-5)
    assert "red apple" in best.texts
    assert best.attributes == {"flag": False, "codepoint": "1F34E"}
    assert (best.width, best.height, best.kind, best.frozen_rank) == (256, 256, "image", None)
    assert result.view == "nudged"
    assert result.plan == "exact"
    assert result.passing == len(emoji.collection)
    assert set(result.seconds) == {"prepare", "embed", "search", "total"}


def test_a_picture_finds_itself(emoji: World, searcher: Searcher) -> None:
    result = searcher.search(Query(image=picture_bytes("openmoji:1F34E"), k=3))
    assert result.hits[0].id == emoji.ids["apple"]
    assert result.hits[0].cosine == pytest.approx(1, abs=1e-4)


def test_text_and_picture_are_a_weighted_sum(emoji: World, searcher: Searcher) -> None:
    image = picture_bytes("openmoji:1F34E")
    text = emoji.embedder.texts(["blue"], "frozen")[0]
    pixels = emoji.embedder.prepare(Image.open(io.BytesIO(image)).convert("RGB"))
    seen = emoji.embedder.pictures(pixels[None], "frozen")[0]
    for weight in (0.0, 0.3, 1.0):
        result = searcher.search(Query("blue", image, weight=weight, view="frozen", k=8))
        want = ranking(emoji, unit(weight * text + (1 - weight) * seen), "frozen")
        assert ids(result) == want[:8]


def test_more_like_this_leaves_the_item_out(emoji: World, searcher: Searcher) -> None:
    names, vectors = stored(emoji, "nudged")
    own = vectors[names.index(emoji.ids["apple"])]
    result = searcher.search(Query(like=emoji.ids["apple"], k=6))
    assert ids(result) == ranking(emoji, own, "nudged")[1:7]
    with_text = searcher.search(Query("green", like=emoji.ids["apple"], k=6))
    assert emoji.ids["apple"] not in ids(with_text)


def test_excluded_words_lower_what_matches_them(emoji: World, searcher: Searcher) -> None:
    plain = searcher.search(Query("red", k=180, view="frozen"))
    rest = searcher.search(Query("red", exclude="apple", k=180, view="frozen"))
    before = {hit.id: hit for hit in plain.hits}[emoji.ids["apple"]]
    after = {hit.id: hit for hit in rest.hits}[emoji.ids["apple"]]
    assert before.rank <= 3
    assert after.rank > 20
    assert after.cosine < before.cosine - 0.1
    text, excluded = emoji.embedder.texts(["red", "apple"], "frozen")
    vector = unit(text - (text @ excluded) * excluded)
    assert ids(rest) == ranking(emoji, vector, "frozen")


def test_without_takes_a_direction_out_and_adds_none() -> None:
    e = np.array([1.0, 0, 0], np.float32)
    vectors = np.array([[0.6, 0.8, 0], [-0.6, 0.8, 0], [1, 0, 0]], np.float32)
    assert without(vectors, e) == pytest.approx(
        np.array([[0, 1, 0], [-0.6, 0.8, 0], [0, 0, 0]]), abs=1e-6
    )


def test_excluding_the_query_itself_is_refused(searcher: Searcher) -> None:
    with pytest.raises(UserError, match="nothing is left"):
        searcher.search(Query("red door", exclude="red  door"))


def test_filter_view_and_k(emoji: World, searcher: Searcher) -> None:
    result = searcher.search(Query("red", filter="flag = true", k=4, view="frozen"))
    assert len(result.hits) == 4
    assert all(hit.attributes["flag"] for hit in result.hits)
    assert result.view == "frozen"
    assert result.passing < len(emoji.collection)
    nothing = searcher.search(Query("red", filter='codepoint = "none"'))
    assert nothing.hits == []
    assert "no item passes" in nothing.notes[0]


def test_strength_blends_query_and_items(emoji: World, searcher: Searcher) -> None:
    frozen, adapted = (emoji.embedder.texts(["a red fruit"], v)[0] for v in ("frozen", "nudged"))
    names, f = stored(emoji, "frozen")
    _, a = stored(emoji, "nudged")
    items = 0.7 * f + 0.3 * a
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    scores = items @ unit(0.7 * frozen + 0.3 * adapted)
    result = searcher.search(Query("a red fruit", strength=0.3, k=10))
    assert ids(result) == [names[row] for row in np.argsort(-scores, kind="stable")[:10]]
    assert result.hits[0].cosine == pytest.approx(float(scores.max()), abs=1e-5)
    at_zero = searcher.search(Query("a red fruit", strength=0, k=10))
    assert ids(at_zero) == ids(searcher.search(Query("a red fruit", view="frozen", k=10)))
    assert all(hit.calibrated is not None for hit in result.hits)


def test_compare_gives_the_frozen_hits_and_ranks(emoji: World, searcher: Searcher) -> None:
    query = Query("an animal", filter="flag = false", k=12, compare=True)
    result = searcher.search(query)
    vector = emoji.embedder.texts(["an animal"], "frozen")[0]
    passing = {h.id for h in searcher.search(Query("x", filter="flag = false", k=180)).hits}
    order = [name for name in ranking(emoji, vector, "frozen") if name in passing]
    assert [hit.id for hit in result.frozen_hits] == order[:12]
    assert [hit.frozen_rank for hit in result.hits] == [order.index(i) + 1 for i in ids(result)]
    assert [hit.frozen_rank for hit in result.frozen_hits] == list(range(1, 13))
    assert any(hit.frozen_rank != hit.rank for hit in result.hits)


def test_compare_counts_no_liked_item(emoji: World, searcher: Searcher) -> None:
    result = searcher.search(Query(like=emoji.ids["cat"], k=5, compare=True))
    assert emoji.ids["cat"] not in [hit.id for hit in result.frozen_hits]
    assert [hit.frozen_rank for hit in result.frozen_hits] == [1, 2, 3, 4, 5]


def test_comparing_the_frozen_view_is_said(searcher: Searcher) -> None:
    result = searcher.search(Query("cat", view="frozen", compare=True, strength=0.5))
    assert [hit.rank for hit in result.hits] == [hit.frozen_rank for hit in result.hits]
    assert {note.split(":")[0] for note in result.notes} == {
        "nothing to compare", "strength has no effect",
    }  # fmt: skip


def test_exact_is_passed_on(emoji: World, searcher: Searcher) -> None:
    asked = []

    class Watched:
        def __getattr__(self, name):
            return getattr(emoji.collection, name)

        def __len__(self):
            return len(emoji.collection)

        def search(self, *args, **options):
            asked.append(options["exact"])
            return emoji.collection.search(*args, **options)

    for exact in (False, True):
        Searcher(Watched(), emoji.embedder, calibrated=False).search(Query("cat", exact=exact))
    assert asked == [None, True]


def test_the_steps_alone_give_the_same(emoji: World, searcher: Searcher) -> None:
    query = Query("red", image=jpeg(picture(3)), exclude="blue", strength=0.5, compare=True)
    prepared = prepare(query, emoji.collection, transform=emoji.embedder.prepare)
    assert prepared.texts == ("red", "blue")
    assert prepared.pixels.shape == (1, 3, 64, 64)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.views == ("nudged", "frozen")
    vectors = embed(prepared, emoji.embedder)
    for view in prepared.views:  # what a batcher computes row by row
        for row, text in enumerate(prepared.texts):
            assert vectors[view]["texts"][row] == pytest.approx(
                emoji.embedder.texts([text], view)[0], abs=1e-5
            )
    result = rank(prepared, vectors, emoji.collection)
    assert ids(result) == ids(searcher.search(query))
    assert result.hits[0].calibrated is None


@pytest.mark.parametrize(
    "text", ["🍎", "👩‍👩‍👧‍👦", "جمل أحمر", "תפוח אדום", "ひとつ\tの\nりんご", "e\u0301\u200d"]
)
def test_every_script_works(text: str, searcher: Searcher) -> None:
    assert len(searcher.search(Query(text, k=3)).hits) == 3


PDF = b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n"
THREAD = io.BytesIO()
Image.new("L", (1, 4000)).save(THREAD, "PNG")
BAD = {
    "nothing": (Query(), "the query is empty"),
    "blank": (Query(" \n\u200b "), "the query is empty"),
    "only excluded": (Query(exclude="red"), "nothing is looked for"),
    "long": (Query("x" * 10_000), "10,000 characters"),
    "long exclude": (Query("x", exclude="y" * 2001), "2,001 characters"),
    "surrogate": (Query("a\ud800"), "surrogate"),
    "two pictures": (Query(image=PDF, like="0" * 32), "one picture"),
    "k 0": (Query("x", k=0), "k is 0"),
    "k huge": (Query("x", k=10**9), "k is 1,000,000,000"),
    "k true": (Query("x", k=True), "not a whole number"),
    "weight": (Query("x", weight=1.5), "weight is 1.5"),
    "strength": (Query("x", strength=float("nan")), "strength is nan"),
    "view": (Query("x", view="nudgd"), "did you mean 'nudged'"),
    "filter column": (Query("x", filter="flagg = true"), "did you mean 'flag'"),
    "filter injects": (Query("x", filter="flag = true; drop table emoji"), "where:"),
    "no such item": (Query(like="0" * 32), "no item"),
    "path as item": (Query(like="../../etc/passwd"), "no item"),
    "pdf": (Query(image=PDF), "PDF document"),
    "bomb": (Query(image=bomb()), "too large: 30000 x 30000"),
    "truncated": (Query(image=jpeg(picture(1, (200, 160)))[:900]), "truncated"),
    "empty file": (Query(image=b""), "empty file"),
    "thread": (Query(image=THREAD.getvalue()), "too narrow: 1 x 4000"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_fix(case: str, emoji: World, searcher: Searcher) -> None:
    query, message = BAD[case]
    with pytest.raises(UserError) as caught:
        searcher.search(query, picture_name="door.jpg")
    assert message in str(caught.value)
    assert caught.value.where or "where:" in str(caught.value)
    assert case == "k true" or caught.value.fix
    if query.image is not None and "picture" not in message:
        assert caught.value.where == "door.jpg"


def test_limits_are_adjustable(emoji: World, searcher: Searcher) -> None:
    with pytest.raises(UserError, match="the limit is 3"):
        searcher.search(Query("four"), Limits(max_text=3))
    with pytest.raises(UserError, match="MB"):
        searcher.search(Query(image=picture_bytes("openmoji:1F34E")), Limits(max_bytes=100))


def test_strength_needs_a_frozen_view(emoji: World) -> None:
    card = emoji.collection.card

    class OneView:
        card = dataclasses.replace(emoji.collection.card, views=(emoji.collection.card.views[1],))

    assert card.view_names == ("frozen", "nudged")
    for option, query in {
        "strength": Query("x", strength=0.5), "compare": Query("x", compare=True),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match="no embeddings of the frozen model") as caught:
            prepare(query, OneView())
        assert caught.value.where == option
