"""Killed writers, full disks, lost leases: the last version stays readable."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.search.making import CARD, items, names, vectors

from crossadapt.errors import UserError
from crossadapt.search.collection import Collections
from crossadapt.search.store import lock

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from crossadapt.search.collection import Collections
from tests.search.making import items
with Collections(sys.argv[1]).open("c", write=True) as collection:
    print("ready", flush=True)
    for batch in range(10_000):
        collection.upsert(items(100, start=100 * batch))
        print(batch, flush=True)
"""
FULL = """
import resource, sys
from crossadapt.errors import UserError
from crossadapt.search.collection import Collections
from tests.search.making import items
collection = Collections(sys.argv[1]).open("c", write=True)
rows = items(5000, start=100)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
query = rows["vector_frozen"][0].as_py()
for action in (lambda: collection.upsert(rows), lambda: collection.search(query)):
    try:
        action()
    except UserError as error:
        print(error.what)
print(len(collection))
"""


def start(code: str, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(store)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Collections:
    home = Collections(tmp_path / "store", wait=0.2)
    with home.create(CARD) as collection:
        collection.upsert(items(100))
    return home


def test_a_killed_writer_leaves_whole_batches_and_no_lock(home: Collections) -> None:
    delay = random.Random(0)
    for _ in range(2):
        with start(WRITER, Path(home.uri)) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            with pytest.raises(UserError, match=f"process {writer.pid} ") as error:
                home.open("c", write=True)
            assert "waited 0.2 s" in error.value.what
            assert len(home.open("c")) >= 100  # readers do not wait
            for _ in range(3):
                writer.stdout.readline()
            time.sleep(delay.uniform(0, 0.03))
            writer.send_signal(signal.SIGKILL)
            done = writer.stdout.read().split()
        reader = home.open("c")
        assert len(reader) % 100 == 0
        assert len(reader) >= 100 * max([3, *(int(batch) + 1 for batch in done)])
        last = len(reader) - 1
        assert reader.search(vectors(last + 1, 2)[last], 1).ids == names([last])
        with home.open("c", write=True) as again:
            again.upsert(items(1))
            assert len(again) == len(reader)


def test_a_full_disk_is_said_and_the_old_version_stays(home: Collections, tmp_path: Path) -> None:
    big = items(600, start=0)
    with home.open("c", write=True) as collection:
        collection.upsert(big)  # its cached vectors alone are beyond the limit below
    with start(FULL, Path(home.uri)) as process:
        out, error = process.communicate()
    assert process.returncode == 0, error
    said = out.splitlines()
    assert said[0].startswith("could not be saved: ")
    assert "full" in said[0] or "too large" in said[0] or "exceed" in said[0]
    assert said[1].startswith("the vectors cannot be cached: ")
    assert said[2] == "600"
    reader = home.open("c")
    assert len(reader) == 600
    assert reader.search(vectors(600, 2)[599], 1).ids == names([599])


def test_a_lease_that_is_not_renewed_is_taken_over(
    home: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "TTL", 0.6)
    db = home.store._db
    crashed = lock._Lease(db, "_lease.c")
    assert crashed.take()
    with pytest.raises(UserError, match="being written by"):
        lock.lease(db, "_lease.c", "c", home.uri, 0.1).__enter__()
    time.sleep(0.6)
    with lock.lease(db, "_lease.c", "c", home.uri, 0):  # watched longer than it would wait
        crashed.renew_until(_Soon())
        assert crashed.lost
    assert home.names() == ["c"]


def test_a_lease_is_renewed_while_it_is_held(
    home: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "TTL", 2.0)
    db = home.store._db
    with (
        lock.lease(db, "_lease.c", "c", home.uri, 0),
        pytest.raises(UserError, match=r"waited 3 s"),
    ):
        lock.lease(db, "_lease.c", "c", home.uri, 3).__enter__()


def test_a_writer_that_lost_its_lease_is_told(
    home: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "TTL", 0.4)
    held = lock.lease(home.store._db, "_lease.c", "c", home.uri, 0)
    held.__enter__()
    row = home.store._db.open_table("_lease.c")
    row.update(values={"token": "another", "holder": ""})
    time.sleep(0.5)
    with pytest.raises(UserError, match="took over"):
        held.__exit__(None, None, None)


def test_an_interrupted_cache_build_leaves_nothing(
    home: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossadapt.search import cache

    reader = home.open("c")
    folder = cache.folder_of(reader.card, reader.version)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_write", fail)
        with pytest.raises(UserError, match="cannot be cached: the disk is full") as error:
            reader.search(np.ones(16))
    assert "CROSSADAPT_CACHE" in error.value.fix
    assert list(folder.parent.iterdir()) == []
    assert len(reader.search(np.ones(16)).ids) == 10


def test_a_reader_of_a_forgotten_version_is_told_to_open_again(home: Collections) -> None:
    reader = home.open("c")
    with home.open("c", write=True) as collection:
        collection.delete(names(range(50)))
        collection.upsert(items(100))
        collection.maintain(keep_seconds=0)
    with pytest.raises(UserError) as error:
        reader.get(names(range(60)))
    assert "open it again" in error.value.fix
    assert reader.refresh()
    assert reader.get(names(range(60))).num_rows == 60


class _Soon:
    """An event that is set after one look."""

    def __init__(self) -> None:
        self.looks = 0

    def wait(self, _: float) -> bool:
        self.looks += 1
        return self.looks > 1
