"""The runs of a comparison on disk: finished ones, failed ones, and how one is made.

A run is a child process (`crossadapt.training.contender`), or for a cache of features a call, and
a file named by the hash of what decides its numbers: ``NAME.json`` when finished,
``NAME.failed.json`` with the reason otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crossadapt.adapters.registry import make_config
from crossadapt.errors import UserError
from crossadapt.files import write_file
from crossadapt.training.contender import measure_classes
from crossadapt.training.job import TrainJob
from crossadapt.training.record import versions

# Fields of a job that decide its numbers only when they are set.
_UNSET = ("frames", "sampling", "pooling", "shots", "label")
# Fields that never do.
_FREE = ("output", "resume", "quiet", "workers", "cache", "checkpoint_seconds", "checkpoint_steps")
_LONGEST = 200


class RunFailed(Exception):
    """A run that ended without a result.

    Attributes:
        reason: what it said last, on one line.
        said: its last lines.
        code: the exit code of its process; negative for a signal.
    """

    def __init__(self, code: int, said: list[str]) -> None:
        self.code, self.said = code, said
        self.reason = reason(code, said)
        super().__init__(self.reason)


def reason(code: int, said: list[str]) -> str:
    """One line about why a run failed: its error message, else how it ended."""
    errors = [line for line in said if line.startswith("error: ")]
    if errors:
        found = errors[-1].removeprefix("error: ")
    elif code < 0:
        found = f"ended by signal {-code} (9 often means that memory ran out)"
    else:
        found = said[-1].strip() if said else f"ended with code {code}"
    return found if len(found) <= _LONGEST else found[: _LONGEST - 1] + "…"


def result_file(
    runs: Path, label: str, seed: int, job: TrainJob, identity: Mapping[str, str]
) -> Path:
    """Where the result of a run belongs; another file for anything that changes its numbers."""
    decides = {k: v for k, v in asdict(job).items() if k not in (*_FREE, "data")}
    # Pictures have no clip settings and retrieval no shots: a run is the same without these fields.
    decides = {k: v for k, v in decides.items() if k not in _UNSET or v is not None}
    # Resolved, so that a changed default of ours is a changed run.
    decides["recipe"] = job.recipe().identity()
    decides["config"] = asdict(make_config(job.method, job.method_options))
    text = json.dumps([decides, identity, versions()["crossadapt"]], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9._=-]+", "-", label).strip("-")
    return runs / f"{slug}-s{seed}-{digest}.json"


def failed_file(result: Path) -> Path:
    """Where it is written that a run failed, beside where its result would be."""
    return result.with_suffix(".failed.json")


def known_failure(result: Path) -> str | None:
    """The reason of an earlier failure, or None."""
    path = failed_file(result)
    return json.loads(path.read_text(encoding="utf-8"))["reason"] if path.is_file() else None


def run_child(job: TrainJob, result: Path) -> dict[str, Any]:
    """Train in a child process, or go on where it stopped; its messages go to a log.

    Raises:
        RunFailed: it ended without a result; also written to `failed_file`.
        KeyboardInterrupt: it was stopped.
    """
    folder = result.with_suffix("")
    resume = (folder / "checkpoints" / "last.safetensors").exists()
    settings = {**asdict(job), "output": str(folder), "resume": resume}
    settings["cache"] = str(job.cache) if job.cache is not None else None
    spec, log = result.with_suffix(".job"), result.with_suffix(".log")
    write_file(spec, json.dumps(settings, indent=1))
    failed_file(result).unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as messages:
        child = subprocess.run(
            [sys.executable, "-m", "crossadapt.training.contender", str(spec), str(result)],
            stdout=messages,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    if child.returncode == 130:
        raise KeyboardInterrupt("finished runs are kept; the same command goes on")
    if child.returncode != 0 or not result.is_file():
        said = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise _noted(RunFailed(child.returncode, said), result)
    return json.loads(result.read_text(encoding="utf-8"))


def run_here(job: TrainJob, result: Path) -> dict[str, Any]:
    """As `run_child`, in this process, for a cache of features.

    Raises:
        RunFailed: a user's error ended it; also written to `failed_file`.
    """
    folder = result.with_suffix("")
    resume = (folder / "checkpoints" / "last.safetensors").exists()
    failed_file(result).unlink(missing_ok=True)
    try:
        found = measure_classes(replace(job, output=folder, resume=resume, quiet=True))
    except UserError as error:
        said = f"error: {error}".splitlines()
        write_file(result.with_suffix(".log"), "\n".join(said) + "\n")
        raise _noted(RunFailed(1, said), result) from error
    write_file(result, json.dumps(found, indent=1) + "\n")
    return found


def _noted(failure: RunFailed, result: Path) -> RunFailed:
    """The failure, written to `failed_file`."""
    log = result.with_suffix(".log").name
    note = {"reason": failure.reason, "code": failure.code, "log": log}
    write_file(failed_file(result), json.dumps(note, indent=1) + "\n")
    return failure


def raised(failure: RunFailed, told: str, result: Path) -> UserError:
    """The failure as an error that stops a comparison."""
    return UserError(
        f"{told} failed (code {failure.code}):\n" + "\n".join(failure.said[-6:]),
        where=str(result.with_suffix(".log")),
        fix="finished runs are kept; correct the cause and give the same command again, or "
        "--keep-going to have it as a row that says so",
    )
