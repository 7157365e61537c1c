"""A training run of a second or less; as a script, one that kills itself without warning."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from crossadapt import backbones, files
from crossadapt.adapters.attach import attach
from crossadapt.adapters.registry import make_config
from crossadapt.backbones.precision import choose_precision
from crossadapt.data.manifest import Manifest
from crossadapt.tasks.retrieval import RetrievalTask
from crossadapt.training.config import Recipe
from crossadapt.training.loop import FitResult, fit

COLOURS, THINGS = ("red", "green", "blue", "white"), ("door", "bird", "boat", "house", "flower")


def manifest(count: int = 20, captions: int = 1) -> Manifest:
    """`count` pictures that exist only as names, with `captions` texts each."""
    return Manifest.from_rows(
        {"item": f"openmoji:{i}", "text": f"a {COLOURS[i % 4]} {THINGS[i % 5]}" + " there" * c}
        for i in range(count)
        for c in range(captions)
    )


def pixels(count: int = 20) -> np.ndarray:
    """Noise (count, 3, 32, 32), always the same."""
    shape = (count, 3, 32, 32)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def recipe(**changes) -> Recipe:
    """Four steps an epoch, three epochs, in batches of five."""
    return Recipe(**{"batch_size": 5, "epochs": 3, "lr": 1e-2, **changes})


def prepare(dropout: float = 0.1, batch_size: int = 5, held_out: bool = True):
    """A tiny backbone with an adapter and a task; the same every time."""
    backbone = backbones.tiny("clip")
    attach(backbone, make_config("cross-modal-adapter", {"r": 4, "d_s": 4, "dropout": dropout}))
    rows = manifest()
    task = RetrievalTask(
        backbone,
        rows,
        pixels(),
        validation=rows if held_out else None,
        validation_pixels=pixels() if held_out else None,
        batch_size=batch_size,
        precision=choose_precision("fp32"),
    )
    return backbone, task


def run(output: Path, *, resume: bool = False, task=None, **changes) -> tuple[FitResult, dict]:
    """Train (or resume) and return the result and the trained tensors."""
    backbone, own = prepare()
    result = fit(
        backbone,
        own if task is None else task(own),
        recipe(**changes),
        output=output,
        precision=choose_precision("fp32"),
        resume=resume,
        quiet=True,
    )
    return result, {k: v.detach() for k, v in backbone.adapters["default"].trained().items()}


class AtStep:
    """A task that does something just before a step (counted from 1 in this process)."""

    def __init__(self, task, step: int, action) -> None:
        self.task, self.step, self.action, self.count = task, step, action, 0
        # Methods become attributes of this object: an isinstance check against a protocol looks
        # attributes up without `__getattr__` since Python 3.12.
        for name in dir(type(task)):
            method = callable(inspect.getattr_static(type(task), name))
            if method and not name.startswith("_") and not hasattr(type(self), name):
                setattr(self, name, getattr(task, name))

    def __getattr__(self, name):
        return getattr(self.task, name)

    def collate(self, rows):
        self.count += 1
        if self.count == self.step:
            self.action()
        return self.task.collate(rows)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, moment, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if moment == "saving":
        # Dead after the temporary file is written, before it takes the old one's place.
        before, seen, limit = os.replace, [], step

        def replace(source, target) -> None:
            seen.append(target)
            if len(seen) == limit:
                die()
            before(source, target)

        files.os.replace = replace
        step = 0
    run(where, resume=True, task=lambda t: AtStep(t, step, die), checkpoint_steps=3)
    raise SystemExit("still alive")
