"""kill -9 while training and while saving, then resume: the same weights bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from tests import small_run

from crossadapt.training.events import read_events


def killed(folder: Path, moment: str, count: int) -> None:
    """Run until the process kills itself."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(root / "tests" / "small_run.py"), str(folder), moment, str(count)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_twice_and_resumed_equals_never_killed(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, wanted = small_run.run(tmp_path / "whole")
        folder = tmp_path / "killed"
        killed(folder, "training", 6)  # after the checkpoints of steps 3 and 4
        # Resumed at step 4; dies between writing the one of step 7 and publishing it
        # (the first replacement is that of the event file).
        killed(folder, "saving", 2)
        result, found = small_run.run(folder, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert (result.status, result.step) == ("finished", 12)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    steps = [e["step"] for e in read_events(folder / "events.jsonl") if e["event"] == "step"]
    assert steps == list(range(1, 13))
