"""Indexing jobs: from folders and archives to the rows of a collection, resumable at any point.

What is done is read off the collection itself, so there is no second record that could disagree
with it: a job that was killed leaves complete rows, and the next run does what is missing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossadapt.data.container import require_decoder
from crossadapt.data.decoding import MAX_PIXELS
from crossadapt.errors import UserError
from crossadapt.search.attributes import settle
from crossadapt.search.clips import clip_rule
from crossadapt.search.collection import Collection, Collections
from crossadapt.search.item_pass import ItemPass
from crossadapt.search.job_ledger import JobLedger
from crossadapt.search.known import Known
from crossadapt.search.runtimes import check_runtime
from crossadapt.search.sources import Entry, scan
from crossadapt.search.target import (
    PENDING,
    Wanted,
    adapter_names,
    existing_card,
    open_embedder,
    open_target,
)

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class IndexJob:
    """What to embed, with what, into which collection."""

    paths: Sequence[str]
    """Sources: see `crossadapt.search.sources.scan`."""
    collection: str
    """Name of the collection; made if there is none."""
    adapters: Sequence[str] = ()
    """Adapter folders, as ``NAME=FOLDER`` or ``FOLDER``; each becomes a view."""
    backbone: str | None = None
    """Source of the backbone; the collection's own, or the adapter's, or `pico-clip`."""
    frozen: bool = True
    """Also embed with the frozen model, as the view ``frozen``."""
    store: str | None = None
    """Folder or ``s3://…`` of collections; the user's own when None."""
    prune: bool = False
    """Delete rows whose item is not in the sources (any more)."""
    workers: int | None = None
    """Processes that decode; one per processor, up to 8, when None. With 0 pictures are decoded
    here, where a stuck one cannot be given up."""
    batch_size: int = 128
    """Pictures in one forward pass."""
    columns: Mapping[str, str] | None = None
    """Which column of a table is which: item, text, group, split."""
    ledger: Path | None = None
    """File of what failed; beside the collection when None."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    precision: str = "auto"
    """``auto``, ``bf16`` or ``fp32``; a collection keeps the one it began with."""
    runtime: str = "torch"
    """What runs the encoders of pictures: see `crossadapt.search.runtimes.choose`."""
    timeout: float = 60.0
    """Seconds for one picture or clip; then its worker is killed and the item given up."""
    max_pixels: int = MAX_PIXELS
    """Pictures with more pixels are not decoded."""
    frames: int | None = None
    """Most frames kept of a clip: see `crossadapt.search.clips.clip_rule` for the default."""
    sampling: str | None = None
    """Which frames of a clip."""
    quiet: bool = False
    """Show no progress."""


@dataclass
class IndexReport:
    """What a job did; counts are items."""

    collection: str
    store: str
    found: int = 0
    """Items in the sources."""
    already: int = 0
    """Items that were in the collection with all their vectors."""
    embedded: int = 0
    updated: int = 0
    """Rows whose captions, attributes or place changed; their vectors stayed."""
    replaced: int = 0
    """Rows deleted because their file has other content now."""
    pruned: int = 0
    duplicates: int = 0
    """Items with the same content as another: they share its row."""
    failed: int = 0
    rows: int = 0
    """Rows in the collection at the end."""
    views: dict[str, str] = field(default_factory=dict)
    """View to fingerprint."""
    runtimes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """View to what ran its encoders and why; empty when nothing had to be embedded."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reasons of what failed or was left out, with counts."""
    ledger: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def run_index(job: IndexJob, *, console: Console | None = None) -> IndexReport:
    """Embed what is new or changed in the sources; see `IndexJob` and `IndexReport`.

    Raises:
        UserError: no source, no picture, a wrong option, another backbone than the collection's,
            attributes that change their type, another writer, or a full disk. What was written
            before stays, and the next run goes on from there.
        KeyboardInterrupt: after what was embedded has been written.
    """
    _check(job)
    began = time.monotonic()
    wanted = Wanted(
        job.collection,
        job.store,
        job.backbone,
        adapter_names(job.adapters),
        job.frozen,
        job.device,
        job.precision,
    )
    card = existing_card(wanted)
    uri = Collections(job.store).uri
    ledger = JobLedger(job.ledger, uri, job.collection)
    entries = scan(job.paths, columns=job.columns, ledger=ledger.found)
    types = settle(entries, card.attributes if card is not None else {})
    embedder = open_embedder(wanted, card)
    report = IndexReport(job.collection, uri, found=len(entries))
    sources = [_absolute(path) for path in job.paths]
    clips: dict[str, Any] = {}
    if any(entry.kind == "video" for entry in entries):
        require_decoder()  # a worker could only die of it
        clips = clip_rule(card, wanted.adapters.values(), job.frames, job.sampling).to_dict()
    with open_target(wanted, embedder, types, sources, clips) as collection:
        report.views = {view.name: view.fingerprint for view in collection.card.views}
        known = Known(collection, collection.card.facts.get(PENDING, []))
        if not job.prune:
            _check_covered(collection, known, entries)
        done = ItemPass(job, collection, embedder, known, ledger, console)
        done.run(entries)
        report.already, report.embedded = done.already, done.embedded
        report.failed = done.failed
        report.runtimes = {name: choice.to_dict() for name, choice in done.runtimes.items()}
        _reconcile(job, collection, done, report, sources)
        report.rows = len(collection)
    report.seconds = round(time.monotonic() - began, 3)
    return report


def _check_covered(collection: Collection, known: Known, entries: Sequence[Entry]) -> None:
    """Refuse to leave rows without a vector because they are not among the sources."""
    items = {entry.item for entry in entries}
    left = [s for s in known.by_id.values() if s.missing and s.item not in items]
    if left:
        sources = " ".join(collection.card.facts.get("sources", []))
        raise UserError(
            f"{len(left):,} rows of collection {collection.card.name!r} would have no vectors of "
            f"{', '.join(left[0].missing)}: they are not among the sources",
            where=left[0].item,
            fix=f"name their sources too ({sources}), or drop these rows with --prune",
        )


def _reconcile(
    job: IndexJob,
    collection: Collection,
    done: ItemPass,
    report: IndexReport,
    sources: Sequence[str],
) -> None:
    """Captions, deletions, ledger and facts: make the collection what the sources are now."""
    report.updated = done.update()
    replaced, gone = done.known.gone(done.items, done.unsure, done.claims)
    report.replaced = collection.delete(replaced) if replaced else 0
    report.pruned = collection.delete(gone) if gone and job.prune else 0
    report.duplicates = done.note_twins()
    done.ledger.close(done.items, sources)
    report.left_out, report.ledger = done.ledger.reasons(), done.ledger.shown
    facts = dict(collection.card.facts)
    # A row of an item that could not be read now may still lack a vector.
    dropped = {*replaced, *gone} if job.prune else set(replaced)
    rows = done.known.by_id.values()
    if not any(s.missing and s.id not in done.claims and s.id not in dropped for s in rows):
        facts.pop(PENDING, None)
    facts |= {
        "sources": list(dict.fromkeys([*facts.get("sources", []), *sources])),
        "duplicates": report.duplicates,
        "ledger": {
            "count": sum(report.left_out.values()),
            "reasons": report.left_out,
            "file": report.ledger,
        },
    }
    if facts != collection.card.facts:
        collection.update_card(facts=facts)
    if report.embedded or report.updated or report.replaced or report.pruned:
        collection.maintain()


def _check(job: IndexJob) -> None:
    if not job.paths:
        raise UserError("nothing to index", where="PATH", fix="name a folder, a table, an archive")
    check_runtime(job.runtime)
    for name, value, least in (
        ("batch_size", job.batch_size, 1),
        ("workers", 0 if job.workers is None else job.workers, 0),
    ):
        if value < least:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {value}", where=flag, fix=f"give {least} or more")


def _absolute(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source
