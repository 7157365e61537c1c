from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pytest
from tests.search.query_world import World, world

from crossadapt.data.openmoji import picture_bytes
from crossadapt.search.calibration import (
    FEWEST,
    Calibration,
    kept_vectors,
    null_queries,
    take_sample,
)
from crossadapt.search.card import Card, View
from crossadapt.search.collection import Collections
from crossadapt.search.null_statistics import Nulls, best_finds, statistics
from crossadapt.search.query import Query, Searcher

pytestmark = pytest.mark.xdist_group("query")


def units(seed: int, *shape: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def loops(nulls: np.ndarray, rows: np.ndarray, own: list[int] | None) -> list[float]:
    """Best z of each null query, leaving it out of mean and deviation, the long way."""
    scores = nulls.astype(np.float64) @ rows.T.astype(np.float64)
    best = []
    for j in range(len(nulls)):
        z = []
        for i in range(len(rows)):
            if own is not None and own[j] == i:
                continue
            others = [
                scores[m, i] for m in range(len(nulls)) if m != j and (own is None or own[m] != i)
            ]
            z.append((scores[j, i] - np.mean(others)) / np.std(others))
        best.append(max(z))
    return sorted(best)


def test_best_finds_leave_the_query_itself_out() -> None:
    nulls, rows = units(0, 30, 8), units(1, 50, 8)
    assert best_finds(Nulls(nulls), rows, 50) == pytest.approx(loops(nulls, rows, None), rel=1e-4)


def test_best_finds_of_items_leave_each_item_out() -> None:
    rows = units(2, 40, 8)
    own = np.arange(0, 40)
    found = best_finds(Nulls(rows[own], own), rows, 40)
    assert found == pytest.approx(loops(rows[own], rows, own.tolist()), rel=0.02)
    assert found.max() < 6  # with itself, every item would have found itself with cosine 1


def test_statistics_skip_what_is_a_query_of_its_own() -> None:
    scores = np.array([[1.0, 2], [3, 9], [5, 4]], np.float32)
    mean, sigma, centred = statistics(scores, np.array([-1, 1, -1]))
    assert mean.tolist() == [3, 3]
    assert sigma == pytest.approx([np.std([1, 3, 5]), 1])
    assert centred[1, 1] == -np.inf


def test_unrelated_queries_score_evenly_between_0_and_1() -> None:
    # The definition of a p-value: drawn like the null queries, the best hit is uniform.
    nulls, rows, queries = units(3, 200, 16), units(4, 500, 16), units(5, 400, 16)
    best = best_finds(Nulls(nulls), rows, 500)
    mean, sigma, _ = statistics(nulls @ rows.T, None)
    top = ((queries @ rows.T - mean) / sigma).max(1)
    shares = np.searchsorted(best, top) / len(best)
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.mean(shares < level) == pytest.approx(level, abs=0.1)


def test_a_sample_is_extrapolated_to_the_collection() -> None:
    nulls, rows = units(6, 200, 32), units(7, 40_000, 32)
    whole = best_finds(Nulls(nulls), rows, 40_000)
    sampled = best_finds(Nulls(nulls), rows[:4000], 40_000)
    alone = best_finds(Nulls(nulls), rows[:4000], 4000)
    assert abs(np.median(sampled) - np.median(whole)) < 0.2
    assert np.median(whole) - np.median(alone) > 0.3


def test_null_queries_are_many_short_and_different() -> None:
    texts = null_queries()
    assert len(texts) == len(set(texts)) == 206
    assert all(text == text.strip() and 3 < len(text) < 60 for text in texts)


# --- with the bundled model -----------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji() -> World:
    return world()


@pytest.mark.parametrize("view", ["frozen", "nudged"])
def test_fitting_queries_score_high_and_nonsense_low(emoji: World, view: str) -> None:
    searcher = Searcher(emoji.collection, emoji.embedder)

    def top(text: str) -> float:
        return searcher.search(Query(text, k=1, view=view)).hits[0].calibrated

    fitting = ["red apple", "red heart", "a photo of a cat", "sad person crying"]
    nonsense = ["qwzx vrtk plonf", "the yearly budget was approved", "gnu zplat 88 fnord",
                "microeconomic equilibrium theory"]  # fmt: skip
    high, low = [top(text) for text in fitting], [top(text) for text in nonsense]
    assert min(high) > 0.95
    # For an unrelated text any value is as likely as another, so one alone may reach far up.
    assert np.mean(low) < 0.5
    assert max(low) < 0.8
    found = [searcher.search(Query(text, k=5, view=view)).hits for text in fitting]
    assert all(0 <= hit.calibrated <= 1 for hits in found for hit in hits)


def test_a_picture_of_the_collection_scores_high_and_noise_low(emoji: World) -> None:
    import io

    from PIL import Image

    searcher = Searcher(emoji.collection, emoji.embedder)
    same = searcher.search(Query(image=picture_bytes("openmoji:1F34E"), k=1)).hits[0]
    assert same.calibrated > 0.95
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    odd = searcher.search(Query(image=buffer.getvalue(), k=1)).hits[0]
    assert odd.calibrated < same.calibrated - 0.2
    both = searcher.search(Query("red apple", picture_bytes("openmoji:1F34E"), k=1)).hits[0]
    assert both.calibrated > 0.95


# --- caching, with a counting embedder --------------------------------------------------------


class Counting:
    """An embedder of texts only, deterministic, that counts what it is asked."""

    dim = 8

    def __init__(self) -> None:
        self.asked: list[int] = []

    def prepare(self, image):
        raise AssertionError("no picture was given")

    def texts(self, texts, views="frozen"):
        self.asked.append(len(texts))
        return np.stack([units(zlib.crc32(text.encode()), 8) for text in texts])


def small(folder, count: int):
    card = Card("small", 8, "none", views=(View("frozen"),))
    collection = Collections(folder).create(card)
    collection.upsert(some(0, count))
    return collection


def some(first: int, count: int) -> pa.Table:
    flat = pa.array(units(first, count, 8).reshape(-1), pa.float32())
    return pa.table(
        {
            "id": [f"{number:032x}" for number in range(first, first + count)],
            "vector_frozen": pa.FixedSizeListArray.from_arrays(flat, 8),
        }
    )


def test_null_texts_are_embedded_once_and_a_new_version_is_noticed(tmp_path) -> None:
    with small(tmp_path, 30) as collection:
        embedder = Counting()
        searcher = Searcher(collection, embedder)
        first = searcher.search(Query("a"))
        searcher.search(Query("b", exclude="c"))
        assert embedder.asked.count(206) == 1
        assert searcher.search(Query("a")).hits == first.hits
        collection.upsert(some(30, 300))
        after = searcher.search(Query("a"))
        assert embedder.asked.count(206) == 1
        fresh = Searcher(collection, Counting()).search(Query("a"))
        assert after.hits == fresh.hits
        assert [hit.calibrated for hit in after.hits] != [hit.calibrated for hit in first.hits]


def test_null_vectors_are_kept_per_model(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSADAPT_CACHE", str(tmp_path))
    made = []

    def make() -> np.ndarray:
        made.append(units(len(made), 206, 8))
        return made[-1]

    first = kept_vectors("model a", 8, make)
    assert np.array_equal(kept_vectors("model a", 8, make), first)
    assert not np.array_equal(kept_vectors("model b", 8, make), first)
    assert len(made) == 2
    [file, _] = sorted((tmp_path / "null-queries").iterdir())
    file.write_bytes(b"damaged")
    kept_vectors("model a", 8, make)
    kept_vectors("model b", 8, make)
    assert len(made) == 3
    kept_vectors("", 8, make)
    assert len(list((tmp_path / "null-queries").iterdir())) == 2


def test_few_items_calibrate_texts_but_not_pictures(tmp_path) -> None:
    with small(tmp_path, FEWEST - 1) as collection:
        searcher = Searcher(collection, Counting())
        assert all(hit.calibrated is not None for hit in searcher.search(Query("a")).hits)
        result = searcher.search(Query(like=f"{0:032x}"))
        assert all(hit.calibrated is None for hit in result.hits)
        assert "no calibrated scores" in result.notes[0]


def test_an_empty_collection_is_said(tmp_path) -> None:
    card = Card("small", 8, "none", views=(View("frozen"),))
    with Collections(tmp_path).create(card) as collection:
        result = Searcher(collection, Counting()).search(Query("a"))
        assert result.hits == []
        assert result.notes == ["collection 'small' is empty"]


def test_the_sample_is_bounded_random_and_repeatable(tmp_path) -> None:
    with small(tmp_path, 400) as collection:
        one, two = take_sample(collection, 50), take_sample(collection, 50)
        assert one.ids == two.ids == sorted(one.ids)
        assert (len(one.ids), one.total) == (50, 400)
        assert int(one.ids[0], 16) < 100
        assert int(one.ids[-1], 16) > 300
        vectors = units(0, 400, 8)[[int(name, 16) for name in one.ids]]
        assert one.vectors["frozen"] == pytest.approx(vectors)
        calibration = Calibration(collection, Counting(), sample=50)
        assert calibration.sample == 50
