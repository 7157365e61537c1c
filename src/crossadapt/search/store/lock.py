"""One writer at a time: a locked file for a folder, a lease for an object store.

Readers never wait. The locks keep two writers from undoing each other's work; a collection cannot
be damaged without them, because Lance refuses a commit that another one overtook.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from crossadapt.errors import UserError

_STARTED = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())

TTL = 20.0
"""Seconds after which a lease that is not renewed may be taken over."""


@contextmanager
def file_lock(path: Path, name: str, wait: float) -> Iterator[None]:
    """Hold ``path.lock``; the system frees it when the process ends, however it ends.

    Raises:
        UserError: another process or thread holds it for longer than `wait` seconds.
    """
    import filelock

    # Not appended with `with_suffix`: names may hold dots.
    lock = filelock.FileLock(f"{path}.lock", timeout=max(wait, 0.0), poll_interval=0.05)
    holder = Path(f"{path}.holder")
    try:
        lock.acquire()
    except filelock.Timeout:
        said = ""
        with contextlib.suppress(OSError):
            said = holder.read_text(encoding="utf-8")
        raise _held(name, said, str(path.parent.parent), wait) from None
    try:
        with contextlib.suppress(OSError):  # only what the error of a second writer says
            holder.write_text(_me(), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def lease(db: Any, table: str, name: str, uri: str, wait: float) -> Iterator[None]:
    """Hold a lease: one row of a small table, changed only by compare-and-set.

    An object store has no locks that end with their process. The holder renews the row every few
    seconds; who waits takes it over once it has seen no change for `TTL` seconds by its own
    clock, so the clocks of two machines need not agree. A lease that looks abandoned (not renewed
    for `TTL` seconds by the wall clock) is watched that long even if `wait` is shorter.

    Creating the table and changing ``token`` from one value to another are commits of Lance, of
    which only one can win: on S3 they are conditional puts (``If-None-Match``).

    Raises:
        UserError: another writer holds it for longer than `wait` seconds, or took it over while
            this one was stopped for longer than `TTL` seconds.
    """
    held = _Lease(db, table)
    deadline = time.monotonic() + wait
    while not held.take():
        late = time.monotonic() - deadline
        if late >= (TTL * 1.5 if held.silent > TTL else 0):
            raise _held(name, held.holder, uri, wait)
        time.sleep(min(0.5, max(wait, 0.1)))
    stop = threading.Event()
    thread = threading.Thread(target=held.renew_until, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        held.release()
    if held.lost:
        raise UserError(
            f"another writer took over collection {name!r} while this one was stopped",
            where=uri,
            fix="run the command again; it goes on from what is stored",
        )


_TROUBLE = (OSError, RuntimeError, ValueError)  # what LanceDB raises when a commit fails


class _Lease:
    """The row, and what this process has seen of it."""

    def __init__(self, db: Any, table: str) -> None:
        self.db, self.name = db, table
        self.token = uuid.uuid4().hex
        self.lost = False
        self.holder = ""
        self._seen: tuple[str, float] = ("", 0.0)  # state of the row, and since when
        self._beat = 0

    def _table(self) -> Any:
        import pyarrow as pa

        row = pa.table({"token": [""], "beat": pa.array([0], pa.int64()), "holder": [""]})
        try:
            return self.db.open_table(self.name)
        except ValueError:
            with contextlib.suppress(*_TROUBLE):  # somebody was faster
                return self.db.create_table(self.name, row)
            return self.db.open_table(self.name)

    @property
    def silent(self) -> float:
        """Seconds since the holder renewed it, as far as the two clocks agree."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return time.time() - float(json.loads(self.holder)["renewed"])
        return 0.0

    def take(self) -> bool:
        """Try once."""
        table = self._table()
        row = table.search(None).limit(1).to_arrow().to_pylist()[0]
        state, now = f"{row['token']}/{row['beat']}", time.monotonic()
        self.holder = row["holder"]
        if state != self._seen[0]:
            self._seen = (state, now)
        if row["token"] and now - self._seen[1] < TTL:
            return False
        free = f"token = '{row['token']}' AND beat = {row['beat']}"
        try:
            return self._swap(table, free, self.token, _me(), row["beat"] + 1)
        except _TROUBLE:  # another commit won
            return False

    def _swap(self, table: Any, where: str, token: str, holder: str, beat: int) -> bool:
        """Change the row if it is still as `where` says."""
        values = {"token": token, "beat": beat, "holder": holder}
        self._beat = beat
        return table.update(where=where, values=values).rows_updated == 1

    def renew_until(self, stop: threading.Event) -> None:
        """Renew every quarter of `TTL` until told to stop, or until somebody took it."""
        while not stop.wait(TTL / 4):
            with contextlib.suppress(*_TROUBLE):  # the network: tried again
                mine = f"token = '{self.token}'"
                self.lost = not self._swap(self._table(), mine, self.token, _me(), self._beat + 1)
                if self.lost:
                    return

    def release(self) -> None:
        """Make the row free and forget its old versions; if that fails, it runs out by itself."""
        with contextlib.suppress(*_TROUBLE):
            table = self._table()
            self._swap(table, f"token = '{self.token}'", "", "", self._beat + 1)
            table.optimize(cleanup_older_than=timedelta(minutes=1))


def _me() -> str:
    return json.dumps(
        {
            "process": os.getpid(),
            "machine": platform.node(),
            "command": Path(sys.argv[0] or "python").name,
            "since": _STARTED,
            "renewed": time.time(),
        }
    )


def _held(name: str, holder: str, where: str, wait: float) -> UserError:
    who = "another process"
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(holder)
        who = (
            f"{said['command']} (process {said['process']} on {said['machine']}, "
            f"since {said['since']})"
        )
    return UserError(
        f"collection {name!r} is being written by {who}; waited {wait:g} s",
        where=where,
        fix="wait until it has finished; searching is possible meanwhile",
    )
