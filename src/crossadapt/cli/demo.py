"""``crossadapt demo``: the bundled model, OpenMoji, one adapter, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crossadapt.cli import train
from crossadapt.cli.options import parse as parse_options
from crossadapt.training.job import TrainJob


@dataclass(frozen=True)
class DemoOptions:
    """Adapt the bundled model to OpenMoji and measure the gain on pictures it has not seen.

    Trains what recipes/demo.yaml says, prints zero-shot against adapted, and writes a report.
    Nothing is downloaded.
    """

    output: Path | None = None
    """Folder of the result; runs/demo, or the next free runs/demo-N, when unset."""
    backbone: str | None = None
    """Another backbone than the bundled one."""
    smoke: bool = False
    """Only see that it runs: one epoch."""


def parse(args: Sequence[str]) -> TrainJob | None:
    """The demo's training job, or None when help was printed."""
    options = parse_options(DemoOptions, args, "demo")
    if options is None:
        return None
    job = train.parse(["--recipe", "demo", *(["--smoke"] if options.smoke else [])])
    if job is None:
        return None
    output = options.output or _free(Path("runs/demo"))
    return replace(job, output=output, backbone=options.backbone or job.backbone)


def run(job: TrainJob) -> int:
    """Say what happens, then train."""
    print(f"Adapting {job.backbone} to {job.data} with {job.method}; the backbone stays frozen.")
    print("Pictures: OpenMoji, CC BY-SA 4.0; 35 % of them are held out.", flush=True)
    return train.run(job)


def _free(folder: Path) -> Path:
    """`folder`, or the first of ``folder-2``, ``folder-3``, … that does not exist yet."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
