"""Checkpoints: one safetensors file that is either whole or absent.

Tensors (trained weights and optimiser moments) are the file's tensors; counters, scores and the
run's identity are JSON in its header, so one rename publishes all of it. Generators need no place
in it: the loop seeds them before every step from (seed, step, process).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from crossadapt.errors import UserError
from crossadapt.files import replacing

FORMAT = "crossadapt-checkpoint-1"


@dataclass
class Progress:
    """Where a run stands. Everything but tensors that a resumed run needs."""

    step: int = 0
    """Optimiser steps done."""
    zero_shot: dict[str, float] = field(default_factory=dict)
    """Validation scores before step 1."""
    best: dict[str, float] = field(default_factory=dict)
    """Validation scores of the best checkpoint."""
    best_step: int = 0
    stale: int = 0
    """Validations since the best."""
    below: int = 0
    """Validations in a row below zero-shot."""
    seconds: float = 0.0
    """Training time so far, over all interruptions."""
    status: str = "running"
    chunk: int = 0
    """Rows encoded at a time where the recipe says `auto`: chosen once, kept by a resumed run."""


def save_checkpoint(
    path: Path,
    trained: Mapping[str, Parameter],
    progress: Progress,
    identity: Mapping[str, Any],
    optimiser: Optimizer | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint in place of an older one, which stays whole if this fails.

    Args:
        path: a `.safetensors` file.
        trained: the trained tensors by name.
        progress: counters and scores.
        identity: what the run is; `load_checkpoint` refuses another.
        optimiser: its per-parameter state is stored too; a checkpoint without it cannot resume.
        state: other tensors to store, such as running statistics or a task's queue.
    """
    tensors: dict[str, Tensor] = {
        f"trained/{name}": p.detach().contiguous() for name, p in trained.items()
    }
    if optimiser is not None:
        for name, p in trained.items():
            for key, value in optimiser.state.get(p, {}).items():
                tensors[f"optimiser/{key}/{name}"] = torch.as_tensor(value).contiguous()
    tensors |= {f"state/{n}": x.detach().contiguous() for n, x in (state or {}).items()}
    header = {
        "format": FORMAT,
        "progress": json.dumps(asdict(progress)),
        "identity": json.dumps(identity, sort_keys=True, default=str),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, header)


def load_checkpoint(
    path: Path,
    trained: Mapping[str, Parameter],
    identity: Mapping[str, Any],
    optimiser: Optimizer | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Progress:
    """Read a checkpoint into trained tensors, optimiser and state; return where it stands.

    Raises a `UserError` when the file is damaged, when it belongs to a run with other settings
    (each difference is named), or when its tensors are not exactly the trained ones.
    """
    tensors, header = _read(path)
    _same_identity(path, json.loads(header["identity"]), identity)
    names = {name.removeprefix("trained/") for name in tensors if name.startswith("trained/")}
    shapes = {name for name in names & set(trained) if not _fits(tensors, trained, name)}
    wrong = sorted(names ^ set(trained) | shapes)
    if wrong:
        raise UserError(
            f"the checkpoint does not hold the tensors this run trains: {', '.join(wrong[:4])}",
            where=str(path),
            fix="start again in another output folder",
        )
    lost = [n for n, x in (state or {}).items() if not _same_shape(tensors.get(f"state/{n}"), x)]
    if lost:
        raise UserError(
            f"the checkpoint does not hold the state of this run: {', '.join(lost[:4])}",
            where=str(path),
            fix="start again in another output folder",
        )
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(tensors[f"trained/{name}"])
        for name, x in (state or {}).items():
            x.copy_(tensors[f"state/{name}"])
    if optimiser is not None:
        _load_optimiser(tensors, trained, optimiser)
    return Progress(**json.loads(header["progress"]))


def _fits(tensors: Mapping[str, Tensor], trained: Mapping[str, Parameter], name: str) -> bool:
    return tensors[f"trained/{name}"].shape == trained[name].shape


def _same_shape(found: Tensor | None, wanted: Tensor) -> bool:
    return found is not None and found.shape == wanted.shape


def _load_optimiser(
    tensors: Mapping[str, Tensor], trained: Mapping[str, Parameter], optimiser: Optimizer
) -> None:
    """Give each parameter its state back; a counter stays where the optimiser keeps counters."""
    states: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith("optimiser/"):
            _, key, name = full_name.split("/", 2)
            states.setdefault(name, {})[key] = tensor
    for name, state in states.items():
        p = trained[name]
        optimiser.state[p] = {key: value.to(p.device) for key, value in state.items()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a checkpoint file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"cannot read the checkpoint: {error}",
            where=str(path),
            fix="delete the file and start again, or restore it from a copy",
        ) from error
    if header.get("format") != FORMAT:
        raise UserError(
            "this file is not a checkpoint of this version",
            where=str(path),
            fix="start again in another output folder",
        )
    return tensors, header


def _same_identity(path: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    current = json.loads(json.dumps(identity, sort_keys=True, default=str))
    different = sorted(key for key in {*stored, *current} if stored.get(key) != current.get(key))
    if different:
        lines = [f"{key}: {stored.get(key)!r} then, {current.get(key)!r} now" for key in different]
        raise UserError(
            "cannot resume: the run was started with other settings (" + "; ".join(lines) + ")",
            where=str(path),
            fix="use the same settings, or another output folder for a new run",
        )
