"""What a task is: how rows become batches, features a loss, and the model a score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from crossadapt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.nn import Parameter

    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.base import Backbone
    from crossadapt.backbones.precision import Precision
    from crossadapt.data.ledger import Ledger
    from crossadapt.data.manifest import Manifest
    from crossadapt.tasks.clips import Clips
    from crossadapt.tasks.encode import Pixels
    from crossadapt.tasks.prefix_cache import PrefixNote

Config = TypeVar("Config")
Inputs = tuple["Tensor", ...]
"""Tensors that describe the same rows: axis 0 is the row axis of each of them."""
Features = dict[str, "Tensor"]
"""One feature tensor (rows, D) per stream."""


@dataclass(frozen=True)
class Batch:
    """What one process feeds to one step.

    `inputs` maps a stream name ("image", "text") to the tensors its encoder needs; each stream may
    be cut along axis 0, which is what the gradient cache does. `targets` holds what the loss needs
    beside the features (groups, teacher features) and is never cut. `pairs` counts the rows.
    """

    inputs: dict[str, Inputs]
    targets: dict[str, Tensor] = field(default_factory=dict)
    pairs: int = 0

    def to(self, device: str) -> Batch:
        """The same batch on a device."""
        return Batch(
            {name: tuple(x.to(device) for x in tensors) for name, tensors in self.inputs.items()},
            {name: x.to(device) for name, x in self.targets.items()},
            self.pairs,
        )


@dataclass(frozen=True)
class TaskSetup:
    """What a task may draw on. A task file offers ``make_task(setup, options) -> Task``.

    `options` is a mapping of plain values; `read_options` turns it into the task's dataclass.
    `ledger` receives what the task cannot use of the data.
    """

    backbone: Backbone
    train: Manifest
    pixels: Pixels | Clips
    validation: Manifest | None
    validation_pixels: Pixels | Clips | None
    batch_size: int
    captions: Literal["one", "all"]
    objective: Literal["info-nce", "sigmoid"]
    seed: int
    precision: Precision
    ledger: Ledger | None = None


def read_options(config: type[Config], options: Mapping[str, Any], task: str) -> Config:
    """The task's config dataclass with the given options.

    Raises:
        UserError: an unknown option; the nearest one is named.
    """
    known = [f.name for f in fields(config)]  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            raise UserError(
                f"the task {task} has no option {key!r}",
                where="task_options",
                fix=did_you_mean(str(key), known) if known else "it takes no options",
            )
    return config(**options)


class Task(Protocol):
    """Everything the loop must know about what is learned; the loop knows nothing else.

    Randomness inside `collate` and `encode` must come from torch's, numpy's or Python's global
    generators: the loop seeds them from (seed, step, process) before every step, which is what
    makes a resumed run equal an uninterrupted one.
    """

    name: str
    headline: str
    """Key of `validate`'s result that picks the best checkpoint; larger is better."""

    def steps_per_epoch(self) -> int:
        """How many batches `batches(epoch, 0)` yields; the same for every epoch."""
        ...

    def batches(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """Rows (int64) of each global batch of an epoch, from batch `start` on.

        A function of (epoch, start) alone: asking again gives the same rows.
        """
        ...

    def collate(self, rows: np.ndarray) -> Batch:
        """Turn this process's rows of a global batch into tensors."""
        ...

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """Features (rows, D) of one stream, row by row independent of the other rows."""
        ...

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Scalar loss over the *global* batch and named parts of it to log.

        With several processes the task gathers what it compares (`objectives.gather`); the loop
        averages gradients over processes, so every process must return the global loss.
        """
        ...

    def validate(self, backbone: Backbone) -> dict[str, float]:
        """Scores on held-out data; an empty dict when there is none."""
        ...

    def parameters(self) -> Mapping[str, Parameter]:
        """Trained tensors of the task's own (heads); checkpointed, never part of the adapter."""
        ...


@runtime_checkable
class StatefulTask(Protocol):
    """What a task offers in addition when it keeps state of its own: a momentum copy, a queue."""

    def state(self) -> Mapping[str, Tensor]:
        """Tensors that a resumed run needs, by name; a checkpoint is read into them in place."""
        ...

    def after_step(self) -> None:
        """Called once after every update of the trained tensors."""
        ...


@runtime_checkable
class PrefixTask(Protocol):
    """What a task offers in addition when its inputs are the same in every epoch."""

    def cache_prefix(
        self, backbone: Backbone, adapter: AttachedAdapter, precision: Precision, epochs: int
    ) -> list[PrefixNote]:
        """Keep what the frozen layers below `adapter` give for the rows, from now on.

        Called before the first step, with the number of `epochs` to come; 0 means not to.
        """
        ...
