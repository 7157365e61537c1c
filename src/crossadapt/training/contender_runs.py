"""The runs of a comparison on disk: finished ones, failed ones, and how one is made.

Every run is a child process (`crossadapt.training.contender`) and a file named by the hash of what
decides its numbers: ``NAME.json`` when finished, ``NAME.failed.json`` with the reason otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossadapt.adapters.registry import make_config
from crossadapt.errors import UserError
from crossadapt.files import write_file
from crossadapt.training.job import TrainJob
from crossadapt.training.record import versions

# Fields of a job that do not decide its numbers.
_CLIPS = ("frames", "sampling", "pooling")
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
    # Pictures have no clip settings, and a run on them is the same with or without these fields.
    decides = {k: v for k, v in decides.items() if k not in _CLIPS or v is not None}
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
        failure = RunFailed(child.returncode, said)
        note = {"reason": failure.reason, "code": failure.code, "log": log.name}
        write_file(failed_file(result), json.dumps(note, indent=1) + "\n")
        raise failure
    return json.loads(result.read_text(encoding="utf-8"))


def raised(failure: RunFailed, told: str, result: Path) -> UserError:
    """The failure as an error that stops a comparison."""
    return UserError(
        f"{told} failed (code {failure.code}):\n" + "\n".join(failure.said[-6:]),
        where=str(result.with_suffix(".log")),
        fix="finished runs are kept; correct the cause and give the same command again, or "
        "--keep-going to have it as a row that says so",
    )
