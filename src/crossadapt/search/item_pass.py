"""The pass over the items of a job: read, decode and embed whatever the collection lacks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crossadapt.data import pool
from crossadapt.data.frame_choice import Sampling
from crossadapt.search.archives import ParquetBytes
from crossadapt.search.clips import MediaReader
from crossadapt.search.job_ledger import DUPLICATE, JobLedger
from crossadapt.search.known import Known, facts_of
from crossadapt.search.progress import JobDisplay
from crossadapt.search.runtime_sample import first_pictures
from crossadapt.search.runtimes import choose
from crossadapt.search.sources import Entry
from crossadapt.search.thumbnails import id_array
from crossadapt.search.writing import Writer

if TYPE_CHECKING:
    from rich.console import Console

    from crossadapt.search.collection import Collection
    from crossadapt.search.embedder import Embedder
    from crossadapt.search.indexing import IndexJob
    from crossadapt.search.runtime_gate import Sample
    from crossadapt.search.runtimes import Choice

Numbered = tuple[int, Entry]


class ItemPass:
    """One pass; what it found is in its attributes afterwards.

    Attributes:
        already: items that had all their vectors.
        embedded: items that were embedded and written.
        failed: items that could not be read, twice.
        items: every item of the sources.
        unsure: items of which not even the content could be read.
        claims: id to (place in the sources, entry) of the first item with that content.
        runtimes: view to what ran its encoders; empty when nothing was to be embedded.
    """

    def __init__(
        self,
        job: IndexJob,
        collection: Collection,
        embedder: Embedder,
        known: Known,
        ledger: JobLedger,
        console: Console | None,
    ) -> None:
        self.job, self.collection, self.embedder = job, collection, embedder
        self.known, self.ledger, self.console = known, ledger, console
        self.views = collection.card.view_names
        self.already = self.embedded = self.failed = 0
        self.items: list[str] = []
        self.unsure: list[str] = []
        self.claims: dict[str, Numbered] = {}
        self.runtimes: dict[str, Choice] = {}
        self._twins: list[tuple[Entry, str]] = []
        self._writer = Writer(collection, embedder, job.batch_size, self._written)

    def run(self, entries: Sequence[Entry]) -> None:
        """Go through all entries; unchanged files cost nothing but a look at their time.

        Raises:
            KeyboardInterrupt: after what was embedded has been written.
        """
        self.items = [entry.item for entry in entries]
        todo: list[Numbered] = []
        for order, entry in enumerate(entries):
            stored = self.known.match(entry)
            if stored is None:
                todo.append((order, entry))
            else:
                self._claim(stored.id, order, entry)
        self.already = len(entries) - len(todo)
        self._display = JobDisplay(
            len(entries), self.already, quiet=self.job.quiet, console=self.console
        )
        if self.already:
            self._display.say(f"{self.already:,} already done")
        with self._display:
            try:
                self._choose(todo)
                failed = self._pass(todo, last=False)
                # A busy disk or a network folder may have been the reason.
                self._pass(failed, last=True)
                self._writer.embed()
                self._writer.flush()
            except KeyboardInterrupt:
                self._writer.flush()
                raise KeyboardInterrupt(
                    f"{len(self.collection):,} items are stored; "
                    "the same command goes on from there"
                ) from None

    def update(self) -> int:
        """Write captions, attributes and places that changed; how many rows."""
        names = self.known.names
        changed = []
        for name, (_, entry) in self.claims.items():
            stored, written = self.known.by_id.get(name), self._writer.stored.get(name)
            before = stored.facts if stored is not None else None
            if stored is None and written is not None:
                before = facts_of(written, names)
            if before is not None and before != facts_of(entry, names):
                changed.append((name, entry))
        return self._writer.update(changed, names)

    def note_twins(self) -> int:
        """Name the items that share another item's row in the ledger; how many there are."""
        count = 0
        for entry, name in self._twins:
            first = self.claims[name][1]
            if first is not entry:
                count += 1
                self.ledger.add(entry.item, f"same content as: {first.item}", DUPLICATE)
        return count

    def _written(self, count: int) -> None:
        self.embedded += count

    def _choose(self, todo: Sequence[Numbered]) -> None:
        """Decide what runs each view, by the first pictures of the job."""
        pictures = [(order, entry) for order, entry in todo if entry.kind == "image"]
        if not pictures:
            return
        job = self.job

        def take() -> Sample | None:
            captions = [entry.texts[0] if entry.texts else None for _, entry in pictures]
            items = zip(_tasks(pictures), captions, strict=True)
            return first_pictures(
                self.embedder, items, _workers(job.workers), job.timeout, job.max_pixels
            )

        once = cache(take)
        for view in self.views:
            self.runtimes[view] = choose(self.embedder, view, job.runtime, once)
            if job.runtime != "torch":
                self._display.say(str(self.runtimes[view]))

    def _pass(self, todo: Sequence[Numbered], last: bool) -> list[Numbered]:
        """Read and embed items; those that failed come back, unless it was their last chance."""
        if not todo:
            return []
        job, failed = self.job, []
        workers = _workers(job.workers)
        rule = self.collection.card.clips
        reader = MediaReader(
            self.embedder.backbone.preprocess.array,
            id_array(self.known.complete()),
            self.embedder.backbone.preprocess.needs,
            Sampling(rule["sampling"], rule["frames"]) if rule else None,
        )
        shared = pool.Job(reader, (), None, job.max_pixels, job.timeout)
        # An item on its way holds its frames: as many of them as pictures, not as many clips.
        frames = rule["frames"] if any(entry.kind == "video" for _, entry in todo) else 1
        window = 2 * job.batch_size // frames + 2 * workers
        for index, answer in pool.stream(shared, _tasks(todo), min(workers, len(todo)), window):
            order, entry = todo[index]
            if answer["reason"] is None:
                self._take(order, entry, answer)
            elif last:
                self._give_up(entry, answer)
            else:
                failed.append((order, entry))
        return failed

    def _take(self, order: int, entry: Entry, answer: Mapping[str, Any]) -> None:
        """One item that could be read: a row to embed, a row to complete, or nothing to do."""
        name = answer["id"]
        first = name not in self.claims
        self._claim(name, order, entry)
        needs = self.known.needs(name, self.views)
        if first and needs:
            self._writer.add(entry, answer, needs, new=name not in self.known.by_id)
            self._display.step(embedded=1)
            return
        self.already += not needs
        self._display.step(skipped=1)

    def _claim(self, name: str, order: int, entry: Entry) -> None:
        """The first item with a content, in the order of the sources, gives its row the name."""
        first = self.claims.setdefault(name, (order, entry))
        if first[1] is entry:
            return
        later = entry
        if order < first[0]:
            self.claims[name], later = (order, entry), first[1]
        self._twins.append((later, name))

    def _give_up(self, entry: Entry, answer: Mapping[str, Any]) -> None:
        self.ledger.add(entry.item, answer["reason"], "decode")
        self._display.say(f"left out: {entry.item}: {answer['reason']}")
        self._display.step(failed=1)
        self.failed += 1
        if "id" not in answer:
            self.unsure.append(entry.item)


def _workers(asked: int | None) -> int:
    """Also for a few pictures: in this process a stuck one could not be given up."""
    return min(8, os.cpu_count() or 1) if asked is None else asked


def _tasks(todo: Sequence[Numbered]) -> Iterator[pool.Task]:
    """Items for the pool; pictures in Parquet files are read here, as they are asked for."""
    cells = ParquetBytes()
    for index, (_, entry) in enumerate(todo):
        content = None
        if entry.row >= 0:
            try:
                content = cells.read(entry)
            except (OSError, pa.ArrowInvalid):
                content = b""  # becomes "empty file" in the ledger, after its second chance
        yield pool.Task(index, entry.where, content)
