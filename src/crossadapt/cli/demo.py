"""``crossadapt demo``: the bundled model, OpenMoji, one adapter, and a search page over both."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossadapt.cli import train
from crossadapt.cli.options import parse as parse_options
from crossadapt.training.job import TrainJob

COLLECTION = "openmoji"
_VIEW = "adapted"
_HELD_OUT = "test"


@dataclass(frozen=True)
class DemoOptions:
    """Adapt the bundled model to OpenMoji, and search pictures it has not seen, before and after.

    Trains what recipes/demo.yaml says, prints zero-shot against adapted, writes a report, makes a
    collection of the held-out pictures, and opens a search page. Nothing is downloaded.
    """

    output: Path | None = None
    """Folder of the result; runs/demo, or the next free runs/demo-N, when unset."""
    backbone: str | None = None
    """Another backbone than the bundled one."""
    smoke: bool = False
    """Only see that it runs: one epoch."""
    serve: bool = True
    """Serve the search page until Ctrl+C; never where nobody is at a terminal, as in CI."""
    port: int = 7700
    """Port of the page; 0 takes a free one."""


@dataclass(frozen=True)
class Demo:
    """What to train, and what comes after it."""

    job: TrainJob
    serve: bool
    port: int

    @property
    def output(self) -> Path:
        """Folder of the result."""
        return Path(self.job.output)

    @property
    def store(self) -> Path:
        """Folder of the collection."""
        return self.output / "collections"


def parse(args: Sequence[str]) -> Demo | None:
    """The demo's training job and what follows, or None when help was printed."""
    options = parse_options(DemoOptions, args, "demo")
    if options is None:
        return None
    job = train.parse(["--recipe", "demo", *(["--smoke"] if options.smoke else [])])
    if job is None:
        return None
    output = options.output or _free(Path("runs/demo"))
    job = replace(job, output=output, backbone=options.backbone or job.backbone)
    return Demo(job, options.serve, options.port)


def run(demo: Demo) -> int:
    """Say what happens, train, index, and serve."""
    job = demo.job
    print(f"Adapting {job.backbone} to {job.data} with {job.method}; the backbone stays frozen.")
    print("Pictures: OpenMoji, CC BY-SA 4.0; 35 % of them are held out.", flush=True)
    taken = None
    wanted = demo.serve and _attended()
    if wanted:
        from crossadapt.search.server.running import take_port

        # A port in use is said now, not after the training.
        taken = take_port("127.0.0.1", demo.port)
    try:
        code = train.run(job)
        if code:
            return code
        _index(demo)
    finally:
        if taken is not None:
            taken.close()
    if not wanted:
        store = shlex.quote(str(demo.store))
        print(f"search page: crossadapt serve {COLLECTION} --store {store} --open")
        return 0
    return _serve(demo)


def _index(demo: Demo) -> None:
    """The held-out pictures as a collection, with the embeddings of before and of after."""
    from crossadapt.data import read_manifest
    from crossadapt.search.indexing import IndexJob, run_index

    print("Making a collection of the held-out pictures …", flush=True)
    held_out = read_manifest(str(demo.job.data)).select(_HELD_OUT)
    source = held_out.write(demo.output / "held-out.parquet")
    values: dict[str, Any] = {"device": demo.job.device, "precision": demo.job.precision}
    report = run_index(
        IndexJob(
            [str(source)],
            COLLECTION,
            adapters=[f"{_VIEW}={demo.output}"],
            backbone=demo.job.backbone,
            store=str(demo.store),
            quiet=demo.job.quiet or not sys.stderr.isatty(),
            **values,
        )
    )
    print(f"collection {COLLECTION}: {report.rows:,} pictures, views {', '.join(report.views)}")


def _serve(demo: Demo) -> int:
    """The search page, until interrupted."""
    from crossadapt.cli import serve

    return serve.run(
        serve.ServeOptions(
            (COLLECTION,),
            store=str(demo.store),
            port=demo.port,
            device=demo.job.device,
            open=True,
        )
    )


def _attended() -> bool:
    """Whether somebody sees what is printed and can press Ctrl+C."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def _free(folder: Path) -> Path:
    """`folder`, or the first of ``folder-2``, ``folder-3``, … that does not exist yet."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
