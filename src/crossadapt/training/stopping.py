"""When a run ends before its last step: no progress, worse than frozen, or somebody asked."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist

from crossadapt.training.checkpoints import Progress
from crossadapt.training.config import Recipe


def judge(progress: Progress, scores: Mapping[str, float], headline: str, recipe: Recipe) -> bool:
    """Count a validation; set `progress.status` if it ends the run; return whether it is the best.

    A run without validation data has no scores: its newest state is its best.
    """
    if not scores:
        progress.best_step = progress.step
        return True
    score = scores[headline]
    climbing = bool(progress.best) and score > progress.best[headline]
    improved = climbing or not progress.best
    if improved:
        progress.best, progress.best_step, progress.stale = dict(scores), progress.step, 0
    else:
        progress.stale += 1
    # A method that starts below the frozen model (prompts do) may climb in peace.
    worse = not climbing and bool(progress.zero_shot) and score < progress.zero_shot[headline]
    progress.below = progress.below + 1 if worse else 0
    if recipe.guard and progress.below >= recipe.guard:
        progress.status = "below-zero-shot"
    elif recipe.patience and progress.stale >= recipe.patience:
        progress.status = "early-stop"
    return improved


class StopSignals:
    """While entered, the first SIGINT or SIGTERM only raises a flag that the loop reads.

    A second SIGINT interrupts at once, as usual. Outside the main thread nothing is installed.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        os.write(2, b"\nsaving and stopping after this step; Ctrl-C again stops at once\n")

    def raised(self, world: int, device: torch.device) -> bool:
        """Whether any process was asked to stop."""
        if world == 1:
            return self._asked
        flag = torch.tensor([int(self._asked)], device=device)
        dist.all_reduce(flag)
        return bool(flag)
