"""Work on several threads: the order of results, what is held, errors, and nested use."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from crossadapt import parallel
from crossadapt.parallel import spread, stream, threads


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel._pool.cache_clear()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    yield
    parallel._pool.cache_clear()


def blas_threads() -> set[int]:
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


@pytest.mark.parametrize("each", [spread, stream])
@pytest.mark.parametrize("count", [0, 1, 2, 37])
def test_results_come_in_the_order_of_the_items(each, count):
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(each(work, range(count))) == [item * item for item in range(count)]


def test_both_threads_work():
    meet = threading.Barrier(2, timeout=20)
    list(stream(lambda _: meet.wait(), range(2)))


def test_only_a_few_items_are_taken_ahead():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    found = stream(lambda item: item, items())
    assert next(found) == 0
    assert len(taken) <= 6
    found.close()
    assert len(taken) <= 6


def test_what_an_item_raises_reaches_the_caller_and_ends_it():
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("item 3")
        return item

    found = stream(work, range(1000))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        list(found)
    assert len(begun) < 20


@pytest.mark.parametrize("inner", [spread, stream])
def test_work_inside_work_waits_for_nobody(inner):
    def work(item: int) -> int:
        assert threads() == 1
        return sum(inner(lambda other: item * other, range(5)))

    assert list(stream(work, range(8))) == [10 * item for item in range(8)]


def test_products_inside_use_one_thread_and_as_many_as_before_afterwards():
    np.ones((8, 8)) @ np.ones((8, 8))
    before = blas_threads()
    assert before, "numpy's matrix library cannot be asked here"
    inside = list(stream(lambda _: blas_threads(), range(4)))
    assert inside == [{1}] * 4
    assert blas_threads() == before
    # Two at once: the first to end must not give the other its threads back.
    first, second = (stream(lambda _: blas_threads(), range(6)) for _ in range(2))
    next(first), next(second)
    first.close()
    assert list(second) == [{1}] * 5
    assert blas_threads() == before
