"""Options of the task `multimodal`, and the modalities that its data bring to a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from crossadapt.data.ledger import Ledger
from crossadapt.data.manifest import Manifest
from crossadapt.data.signals import has_signals, read_signals
from crossadapt.errors import UserError, did_you_mean
from crossadapt.tasks.base import read_options
from crossadapt.tasks.examples import label_column
from crossadapt.tasks.modality_tokens import token_size

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

MODALITIES = ("text", "signals")


@dataclass(frozen=True)
class MultimodalConfig:
    """Options of the task."""

    label: str = "label"
    """The column with the class."""
    modalities: Sequence[str] | None = None
    """Which of `text` and `signals` the method attends to; all there are when unset."""
    pooling: Literal["mean", "concat"] = "mean"
    """Frames are averaged, or stand side by side, which keeps their order (all clips then count
    as having the same number of frames; missing ones are zero)."""
    signal_tokens: int = 64
    """Most tokens of a series; longer ones are averaged over equal parts."""
    start: Literal["probe", "random"] = "probe"
    """The head starts as the linear probe on the frames, so that training begins at the frozen
    model's own score (arXiv 2202.10054), or at random."""
    modality_drop: float = 0.0
    """Probability, in training, that a clip goes without one of its modalities; makes a model
    that copes better where one is missing."""
    token_drop: float = 0.0
    """Share of patch tokens dropped at random while training."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        for name in ("modality_drop", "token_drop", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"{name} is {getattr(self, name)}", where="task_options", fix="give [0, 1)"
                )
        if self.signal_tokens < 1:
            raise UserError("signal_tokens must be at least 1", where="task_options")
        for name, choices in (("pooling", ("mean", "concat")), ("start", ("probe", "random"))):
            value = getattr(self, name)
            if value not in choices:
                fix = did_you_mean(str(value), choices)
                raise UserError(f"{name} is {value!r}", where="task_options", fix=fix)
        for name in self.modalities or ():
            if name not in MODALITIES:
                fix = did_you_mean(str(name), MODALITIES)
                raise UserError(f"there is no modality {name!r}", where="task_options", fix=fix)


def with_modalities(
    method: Any, backbone: Backbone, train: Manifest, options: Mapping[str, Any]
) -> Any:
    """A method's config with the modalities of the data filled in; other methods as they are.

    Raises:
        UserError: modalities are asked for that the data or the method does not have.
    """
    config = read_options(MultimodalConfig, options, "multimodal")
    label_column(train, config.label)
    takes = hasattr(method, "modalities") and hasattr(method, "sources")
    if not takes:
        if config.modalities:
            raise UserError(
                "this method attends to no further modality",
                where="task_options: modalities",
                fix="use the method cm3t, or leave modalities out",
            )
        return method
    if method.modalities:
        return method
    there = ["text", *(["signals"] if has_signals(train) else [])]
    wanted = there if config.modalities is None else list(config.modalities)
    sizes: dict[str, int] = {}
    for name in wanted:
        if name not in there:
            raise UserError(
                "the data has no signals",
                where=train.source,
                fix="add a column 'signals', or leave signals out of the task's modalities",
            )
        if name == "text":
            sizes[name] = backbone.width("text")
        else:
            sizes[name] = token_size(read_signals(train, Ledger()).channels)
    return replace(method, modalities=tuple(f"{n}={size}" for n, size in sizes.items()))
