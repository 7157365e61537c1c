"""Tip-Adapter: a classifier from a few labelled pictures, without any training.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
arXiv 2111.03930 and 2207.09519. N classes with K pictures each; f (B, C) are unit features:

    logits = 100 f W + alpha exp(-beta (1 - f F')) L

W (C, N) are the text features of the class names, F (N K, C) the features of the pictures, each
the mean over ten random crops, and L (N K, N) their one-hot labels. Nothing is trained: 0 values.
The towers are not touched, so embeddings made by the frozen model stay valid.

`alpha` and `beta` are searched on validation pictures after the cache has been filled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossadapt.adapters.plan import Companion, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError
from crossadapt.layers.class_cache import ClassCache

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

ALPHA, BETA = 1.17, 1.0
"""Start values of the released code on ImageNet; the table of the others is with the data sets."""


@dataclass(frozen=True)
class TipAdapterConfig:
    """Options of Tip-Adapter."""

    classes: tuple[str, ...] = ()
    """Names of the classes; the task few-shot takes them from the data."""
    shots: int = 0
    """Pictures per class in the cache; the task few-shot fills it in."""
    alpha: float | None = None
    """Weight of the cache before the search; unset: the data set's published one, or 1.17."""
    beta: float | None = None
    """Sharpness of the cache before the search; unset: 1."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        check_cache_options(self)


def check_cache_options(config: TipAdapterConfig) -> None:
    """Refuse what no cache can have.

    Raises:
        UserError: a class named twice or not at all, shots without classes, a negative factor.
    """
    if len(set(config.classes)) < len(config.classes):
        twice = next(c for c in config.classes if config.classes.count(c) > 1)
        raise UserError(
            f"the class {twice!r} is named twice", where="classes", fix="name every class once"
        )
    if config.shots < 0 or bool(config.classes) != bool(config.shots):
        raise UserError(
            f"{len(config.classes)} classes with {config.shots} shots make no cache",
            where="shots",
            fix="give both, or leave both to the task few-shot",
        )
    for name in ("alpha", "beta"):
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise UserError(f"{name} is {value}", where=name, fix="give 0 or more")


def start(config: TipAdapterConfig) -> tuple[float, float]:
    """Alpha and beta before the search."""
    alpha = ALPHA if config.alpha is None else config.alpha
    return alpha, BETA if config.beta is None else config.beta


@register("tip-adapter", TipAdapterConfig, few_shot=True)
def plan(backbone: Backbone, config: TipAdapterConfig) -> Plan:
    """The cache beside the towers, not trained."""
    size = (config.classes, config.shots, backbone.embedding_dim)
    return [Companion(ClassCache(*size, *start(config), trained_keys=False))]
