"""The numbers of a training run, and the named sets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from crossadapt.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """How the loop trains. Every field is a number of the run's record; nothing is hidden."""

    optimiser: Literal["bert-adam", "adamw", "sgd"] = "bert-adam"
    """bert-adam: no bias correction, as in the paper; adamw: torch's; sgd: with momentum."""
    lr: float = 3e-3
    """Peak learning rate. The one number to try first: five times up and down."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the running means of the gradient and of its square; sgd: the first is the
    momentum."""
    eps: float = 1e-6
    """Added to the root of the mean square."""
    weight_decay: float = 0.2
    """Decoupled decay of matrices (sgd: added to the gradient); biases, gains and scalars have
    none."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0 leaves it alone."""
    batch_size: int = 128
    """Pairs per step over all processes; every other pair of the batch is a negative."""
    chunk: int | Literal["auto"] | None = None
    """Rows encoded at a time by the gradient cache; unset holds the whole batch in memory, `auto`
    as many rows as the free memory allows."""
    epochs: int = 30
    """Passes over the training data."""
    captions: Literal["one", "all"] = "one"
    """One random text per picture and epoch, or all of them."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises from 0."""
    schedule: Literal["steps", "epochs"] = "steps"
    """steps: warm-up, then a cosine, anew at every step. epochs: constant within an epoch, the
    first at 1e-5, then a cosine, as CoOp and MaPLe train; `warmup` does not count there."""
    evaluate_every: int = 1
    """Epochs between two validations."""
    patience: int = 10
    """Validations without a new best before the run stops; 0 never stops early."""
    guard: int = 3
    """Validations in a row below zero-shot, none a new best, before the run stops loudly; 0 never
    does."""
    strength: float = 1.0
    """Dial at which the adapter is validated, measured and saved. Training itself is at 1; a little
    less, such as 0.8, often does better on unseen data when there are few training pairs."""
    checkpoint_seconds: float = 120.0
    """Longest time between two checkpoints; one is also written after every validation."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, in addition."""

    def __post_init__(self) -> None:
        """Refuse numbers no run can have."""
        if self.batch_size < 2:
            raise UserError(
                f"a batch of {self.batch_size} has no negatives: its loss is always 0",
                where="batch_size",
                fix="use 2 or more; the gradient cache (chunk) makes large batches fit",
            )
        bounds = {
            "lr": self.lr > 0,
            "epochs": self.epochs >= 1,
            "warmup": 0 <= self.warmup < 1,
            "weight_decay": self.weight_decay >= 0,
            "clip": self.clip >= 0,
            "chunk": self.chunk in (None, "auto") or (type(self.chunk) is int and self.chunk >= 1),
            "evaluate_every": self.evaluate_every >= 1,
            "patience": self.patience >= 0,
            "guard": self.guard >= 0,
            "strength": 0 < self.strength <= 1,
            "checkpoint_seconds": self.checkpoint_seconds >= 0,
            "checkpoint_steps": self.checkpoint_steps is None or self.checkpoint_steps >= 1,
            "optimiser": self.optimiser in ("bert-adam", "adamw", "sgd"),
            "schedule": self.schedule in ("steps", "epochs"),
            "captions": self.captions in ("one", "all"),
        }
        for name, fine in bounds.items():
            if not fine:
                raise UserError(
                    f"{name} cannot be {getattr(self, name)!r}", where=name, fix=_DOCS[name]
                )

    def identity(self) -> dict[str, Any]:
        """The fields that decide the numbers: how often the run is saved is not among them."""
        free = ["checkpoint_seconds", "checkpoint_steps"]
        # Runs from before there was a choice have the same identity.
        free += ["schedule"] if self.schedule == "steps" else []
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}


_DOCS = {
    "lr": "use a number above 0, such as 1e-3",
    "epochs": "use 1 or more",
    "warmup": "use a share from 0 up to, but not including, 1",
    "weight_decay": "use 0 or more",
    "clip": "use 0 (no clipping) or more",
    "chunk": "use 1 or more, auto, or leave it unset",
    "evaluate_every": "use 1 or more",
    "patience": "use 0 (off) or more",
    "guard": "use 0 (off) or more",
    "checkpoint_seconds": "use 0 or more",
    "checkpoint_steps": "use 1 or more, or leave it unset",
    "optimiser": "use bert-adam, adamw or sgd",
    "schedule": "use steps or epochs",
    "captions": "use one or all",
}

PRESETS: dict[str, Recipe] = {
    "default": Recipe(),
    "paper": Recipe(lr=1e-5, epochs=5, captions="all", patience=0),
    "maple": Recipe(
        optimiser="sgd",
        schedule="epochs",
        lr=3.5e-3,
        weight_decay=5e-4,
        clip=0.0,
        batch_size=4,
        epochs=5,
        patience=0,
        guard=0,
    ),
    "from-scratch": Recipe(
        optimiser="adamw",
        lr=1e-3,
        weight_decay=0.1,
        batch_size=512,
        epochs=40,
        evaluate_every=2,
        patience=0,
        guard=0,
    ),
    "few-shot": Recipe(
        optimiser="adamw",
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-4,
        weight_decay=0.01,
        clip=0.0,
        batch_size=256,
        epochs=20,
        warmup=0.0,
        patience=0,
        guard=0,
    ),
}
"""`default`: the paper's optimiser at a learning rate and length for small sets and models.
`paper`: Cross-Modal Adapter v1 (its batch of 128 is global). `maple`: MaPLe and APoLLo from base
to novel classes; their decay is of all tensors, which for prompts and maps is all but the maps'
biases. `from-scratch`: a small new model. `few-shot`: Tip-Adapter-F's released numbers (AdamW with
torch's betas and decay, no clipping)."""

METHOD_PRESET = dict.fromkeys(("tip-adapter", "tip-adapter-f", "xmadapter"), "few-shot")
"""The preset of methods that are not trained like the others."""

METHOD_LR: dict[str, float] = {
    # Their one block per layer starts like the Cross-Modal Adapter's two, or at zero.
    "adaptformer": 3e-3,
    "attention-adapter": 3e-3,
    # Few values of size 0.02 that have to travel: a step is about the learning rate.
    "coop": 1e-2,
    "vpt": 1e-2,
    # Dense maps from prompt to prompt, and attention over features, diverge sooner.
    "maple": 3e-3,
    "apollo": 1e-3,
    "cross-modal-adapter": 3e-3,
    # Gates and up-projections start at zero, like MV-Adapter's.
    "cm3t": 1e-3,
    # As published; dense layers from random values.
    "hada": 1e-4,
    "mv-adapter": 3e-3,
    "uniadapter": 3e-3,
    "projection": 1e-3,
    "partial": 3e-4,
    "full": 1e-4,
}
"""Peak learning rate of the `default` preset where a method wants its own."""


def make_recipe(preset: str = "default", method: str = "", **changes: Any) -> Recipe:
    """A preset with some numbers changed; None keeps the preset's value.

    Args:
        preset: a key of `PRESETS`.
        method: name of the adaptation method; decides the default preset's learning rate.
        **changes: fields of `Recipe`. An unknown one is an error that names the nearest.
    """
    if preset not in PRESETS:
        raise UserError(
            f"unknown preset {preset!r}", where="preset", fix=did_you_mean(preset, PRESETS)
        )
    recipe = PRESETS[preset]
    if preset == "default" and method in METHOD_LR:
        recipe = replace(recipe, lr=METHOD_LR[method])
    reject_unknown(changes, [f.name for f in fields(Recipe)], where="recipe")
    if isinstance(changes.get("betas"), list):
        changes["betas"] = tuple(changes["betas"])
    return replace(recipe, **{k: v for k, v in changes.items() if v is not None})


def reject_unknown(given: Mapping[str, Any], known: list[str], *, where: str) -> None:
    """Raise a `UserError` naming the nearest known key when one of `given` is not known."""
    for key in given:
        if key not in known:
            raise UserError(
                f"unknown setting {key!r}", where=where, fix=did_you_mean(str(key), known)
            )
