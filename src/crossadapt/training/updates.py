"""Small pieces of a step: what is trained, its random numbers, its gradient over processes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from crossadapt.adapters.attach import active, attached
from crossadapt.adapters.classifier import class_companion
from crossadapt.adapters.companion import companion
from crossadapt.adapters.parts import parameter_tower
from crossadapt.errors import UserError
from crossadapt.tasks.base import PrefixTask, StatefulTask

if TYPE_CHECKING:
    from pathlib import Path

    from crossadapt.backbones.base import Backbone
    from crossadapt.backbones.precision import Precision
    from crossadapt.tasks.base import Task
    from crossadapt.tasks.prefix_cache import PrefixNote

MAX_LOGIT_SCALE = math.log(100)
"""CLIP's ceiling on a trained logit scale."""


def refuse_idle_parts(backbone: Backbone, task: Task) -> None:
    """Refuse a task that would leave a part of the adapter untrained without saying so.

    Raises:
        UserError: the active adapter has a part (a join, a companion, the fusion tower) that the
            task does not run.
    """
    if class_companion(backbone) is not None and not getattr(task, "calls_classes", False):
        raise UserError(
            f"the task {task.name} has no classes, which this method is built from",
            where="task",
            fix="use the task few-shot on data with classes, or another method",
        )
    adapter = active(backbone)
    if adapter is not None and adapter.join is not None and not getattr(task, "trains_join", False):
        raise UserError(
            f"the task {task.name} does not train all parts of {adapter.method}",
            where="task",
            fix="leave the task out, or give --task fusion",
        )
    names = [] if adapter is None else list(adapter.trained())
    fusion = [n for n in names if n.startswith("fusion.") or _in_fusion(backbone, n)]
    if fusion and task.name != "matching":
        raise UserError(
            f"the task {task.name} does not run the fusion tower, where this method trains "
            f"{len(fusion)} tensors",
            where=fusion[0],
            fix="use the task matching, or a method that trains the two encoders only, such as "
            "adaptformer",
        )
    if companion(backbone) is not None and not getattr(task, "calls_companion", False):
        raise UserError(
            f"the task {task.name} does not call the part of this method that scores pairs",
            where="task",
            fix="use the task retrieval, or another method (maple has the same prompts)",
        )


def _in_fusion(backbone: Backbone, name: str) -> bool:
    return "fusion" in {s.tower for s in backbone.sites()} and (
        parameter_tower(backbone, name) == "fusion"
    )


def device_of(backbone: Backbone) -> torch.device:
    """Where the backbone's weights are."""
    return next(backbone.model.parameters()).device


def limit_logit_scale(trained: Mapping[str, Parameter]) -> None:
    """Keep a trained logit scale at or under CLIP's ceiling."""
    with torch.no_grad():
        for name, p in trained.items():
            if name.rpartition(".")[2] == "logit_scale":
                p.clamp_(max=MAX_LOGIT_SCALE)


def trained_tensors(backbone: Backbone, adapter: str, task: Task) -> dict[str, Parameter]:
    """The adapter's tensors as ``adapter.NAME`` and the task's own as ``task.NAME``.

    Tensors of an earlier stage that need no gradient any more are left out.
    """
    own = attached(backbone, adapter).named_trained()
    tensors = {f"adapter.{n}": p for n, p in own if p.requires_grad}
    return tensors | {f"task.{name}": p for name, p in task.parameters().items()}


def after_step(task: Task) -> None:
    """Tell a task that keeps state of its own (`StatefulTask`) that an update was made."""
    if isinstance(task, StatefulTask):
        task.after_step()


def cache_prefix(
    task: Task, backbone: Backbone, adapter: str, precision: Precision, epochs: int
) -> list[PrefixNote]:
    """Have a task that can (`PrefixTask`) cache the frozen layers below an adapter; what it did."""
    if not isinstance(task, PrefixTask):
        return []
    return task.cache_prefix(backbone, attached(backbone, adapter), precision, epochs)


def kept_tensors(backbone: Backbone, adapter: str) -> dict[str, Tensor]:
    """What the adapter keeps beside trained values, as ``adapter.NAME``."""
    return {f"adapter.{n}": x for n, x in attached(backbone, adapter).kept().items()}


def state_tensors(task: Task) -> dict[str, Tensor]:
    """What a task's resumed run needs beside trained values, as ``task.NAME``."""
    state = task.state() if isinstance(task, StatefulTask) else {}
    return {f"task.{name}": tensor for name, tensor in state.items()}


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed Python's, numpy's and torch's global generators for one step of one process.

    A step's random numbers depend on nothing that happened before it, so a resumed run needs no
    stored generator and a validation more or less changes nothing.
    """
    words = np.random.SeedSequence((seed, step, process)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 -- tasks may use libraries that draw from it
    torch.manual_seed(int(words[2]))


def average_and_clip(trained: Sequence[Parameter], clip: float, processes: int) -> float:
    """Average gradients over processes, scale them to a global norm of at most `clip`.

    Returns the norm before clipping; `clip` 0 leaves the gradient alone. All processes exchange
    one flat buffer, which for a few hundred thousand trained values is one message per step.
    """
    if processes > 1:
        flat = torch.cat([_gradient(p).reshape(-1) for p in trained])
        dist.all_reduce(flat)
        flat /= processes
        for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = part.view_as(p)
    return float(torch.nn.utils.clip_grad_norm_(trained, clip or math.inf))


def _gradient(p: Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values."""
    with torch.no_grad():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def diverged(
    loss: float, norm: float, lr: float, moment: str, peak: float, last: Path
) -> UserError:
    """The error for a diverged run; the update of that `moment` was not made."""
    kept = f"the last good checkpoint is {last}" if last.exists() else "none saved yet"
    return UserError(
        f"training diverged: loss {loss}, gradient norm {norm}",
        where=f"{moment}, learning rate {lr:.3g}; {kept}",
        fix=f"start again with a lower lr (now {peak:g}) or precision fp32",
    )
