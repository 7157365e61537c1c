"""One run of a comparison, in a process of its own.

Usage: python -m crossadapt.training.contender JOB.json RESULT.json

A fresh process makes seconds and peak memory those of this run alone. The result file appears
only when the run is complete; exit codes are those of the command line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from crossadapt.errors import UserError
from crossadapt.files import write_file
from crossadapt.training.job import TrainJob, make_job


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the job and return the numbers a comparison needs, as plain JSON types."""
    from crossadapt.training.classifying import details
    from crossadapt.training.few_shot import is_few_shot

    job = make_job(settings, where="comparison")
    if is_few_shot(job):
        return measure_classes(job)
    from crossadapt.training.run import run_training

    result = run_training(job)
    if result.before is None or result.after is None:
        raise UserError(
            "the data has no held-out split to compare on",
            where=str(settings["data"]),
            fix="add data, or name a split 'test'",
        )
    return {
        "before": details(result.before.result),
        "before_resized": None if result.resized is None else details(result.resized.result),
        "after": details(result.after.result),
        "order_probe": result.record["order_probe"],
        "held_out": result.record["held_out"],
        "trained": result.record["trained"],
        "share": result.record["share"],
        "seconds": result.fit.seconds,
        "peak_memory_mb": result.fit.peak_memory,
        "status": result.fit.status,
        "steps": result.fit.step,
        "precision": result.record["precision"],
        "threads": result.record["threads"],
        "left_out": result.ledger.summary(),
        "versions": result.record["versions"],
    }


def measure_classes(job: TrainJob) -> dict[str, Any]:
    """As `measure`, for a job about classes."""
    from crossadapt.training.few_shot import run_few_shot

    result = run_few_shot(job)
    return {
        "before": result.before.to_dict(answers=True),
        "after": result.after.to_dict(answers=True),
        "few_shot": result.record["few_shot"],
        "held_out": result.record["held_out"],
        "trained": result.record["trained"],
        "share": result.record["share"],
        "seconds": result.fit.seconds,
        "peak_memory_mb": result.fit.peak_memory,
        "status": result.fit.status,
        "steps": result.fit.step,
        "precision": result.record["precision"],
        "threads": result.record["threads"],
        "left_out": result.ledger.summary(),
        "versions": result.record["versions"],
    }


def main(argv: list[str]) -> int:
    """Read the job, run it, write the result."""
    job, target = Path(argv[0]), Path(argv[1])
    try:
        found = measure(json.loads(job.read_text(encoding="utf-8")))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}", file=sys.stderr)
        return 130
    write_file(target, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
