"""Attach, detach, switch and dial adapters. The backbone's own parameters are never written.

Several named adapters may be attached to one backbone; one at most is active. Hooks stand only
while an adapter is active, so a backbone without active adapter is the frozen model itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from crossadapt.adapters.adapter import AttachedAdapter
from crossadapt.adapters.registry import method_of
from crossadapt.adapters.validate import check_finite, check_name, check_plan
from crossadapt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


def attach(
    backbone: Backbone, config: Any, *, name: str = "default", seed: int = 0
) -> AttachedAdapter:
    """Attach a new adapter and make it the active one.

    Args:
        backbone: the frozen model; none of its own tensors changes.
        config: a method's config instance; its class decides the method.
        name: key in ``backbone.adapters``; letters, digits, ``-`` and ``_``.
        seed: fixes the initial values, whatever the state of the global random generators (which
            are left as they were).

    Returns:
        The adapter, in training mode, with float32 parameters on the backbone's device.

    Raises:
        UserError: the name is taken, or the plan does not fit; nothing has changed then.
    """
    adapter = build(backbone, config, name=name, seed=seed)
    return install(backbone, adapter)


def build(backbone: Backbone, config: Any, *, name: str, seed: int) -> AttachedAdapter:
    """Plan, validate and make an adapter without touching the backbone. See `attach`."""
    check_name(backbone, name)
    method = method_of(config)
    originals = {id(p) for p in backbone.model.parameters()}
    with torch.random.fork_rng(devices=[]):
        # Fixed on the CPU generator: modules are built there and moved afterwards.
        torch.random.default_generator.manual_seed(seed)
        plan = method.plan(backbone, config)
        check_plan(backbone, plan, method.name)
        adapter = AttachedAdapter(
            backbone, plan, name=name, method=method.name, config=config, seed=seed
        )
    trained = adapter.trained()
    if not trained:
        raise UserError(
            f"{method.name} trains nothing on {backbone.source}", fix="check the method's options"
        )
    for key, parameter in trained.items():
        if id(parameter) in originals:
            raise UserError(
                f"{method.name} would train {key}, which belongs to the frozen backbone",
                where=backbone.source,
                fix="train a copy instead (Override)",
            )
        check_finite(parameter, key)
    return adapter


def install(backbone: Backbone, adapter: AttachedAdapter) -> AttachedAdapter:
    """Put a built adapter on its backbone and activate it."""
    backbone.adapters[adapter.name] = adapter
    activate(backbone, adapter.name)
    return adapter


def detach(backbone: Backbone, name: str = "default") -> None:
    """Remove an adapter; if it was active, the backbone is the frozen model again, bit for bit.

    Raises:
        UserError: no such adapter.
    """
    adapter = attached(backbone, name)
    if adapter.active:
        adapter.unbind(backbone)
    del backbone.adapters[name]


def activate(backbone: Backbone, name: str | None) -> None:
    """Make `name` the one adapter that takes effect, or none for None.

    Raises:
        UserError: no such adapter; the active one stays.
    """
    chosen = None if name is None else attached(backbone, name)
    current = active(backbone)
    if current is chosen:
        return
    if current is not None:
        current.unbind(backbone)
    if chosen is not None:
        chosen.bind(backbone)


def active(backbone: Backbone) -> AttachedAdapter | None:
    """The adapter that takes effect now, or None."""
    return next((a for a in _all(backbone) if a.active), None)


def attached(backbone: Backbone, name: str) -> AttachedAdapter:
    """The adapter called `name`, active or not.

    Raises:
        UserError: no such adapter; names the nearest.
    """
    if name in backbone.adapters:
        adapter: nn.Module = backbone.adapters[name]
        if isinstance(adapter, AttachedAdapter):
            return adapter
    raise UserError(
        f"no adapter named {name!r} is attached",
        fix=did_you_mean(name, backbone.adapters) if backbone.adapters else "attach or load one",
    )


def set_strength(backbone: Backbone, value: float, name: str | None = None) -> None:
    """Dial an adapter between the frozen model (0) and its trained state (1).

    Args:
        backbone: what it is attached to.
        value: s in [0, 1]: an insertion gives ``x + s (module(x) - x)``, a trained copy counts as
            ``W0 + s (W1 - W0)``. 0 is bit-equal to the frozen model.
        name: which adapter; the active one when left out.

    Raises:
        UserError: the value is outside [0, 1], or there is no such or no active adapter.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        raise UserError(
            f"strength {value!r} is not in [0, 1]",
            where="strength",
            fix="0 is the frozen model, 1 the adapter as trained",
        )
    adapter = active(backbone) if name is None else attached(backbone, name)
    if adapter is None:
        raise UserError("no adapter is active", fix="activate one, or give its name")
    adapter.strength = float(value)
    if adapter.active:
        adapter.refresh(backbone)


@contextmanager
def at_strength(backbone: Backbone, value: float, name: str) -> Iterator[Backbone]:
    """Inside the block the adapter `name` is dialled to `value`; afterwards to what it was."""
    before = attached(backbone, name).strength
    set_strength(backbone, value, name)
    try:
        yield backbone
    finally:
        set_strength(backbone, before, name)


@contextmanager
def frozen(backbone: Backbone) -> Iterator[Backbone]:
    """Inside the block the backbone runs without adapter; afterwards the active one is back."""
    current = active(backbone)
    activate(backbone, None)
    try:
        yield backbone
    finally:
        if current is not None and any(a is current for a in _all(backbone)):
            activate(backbone, current.name)


def _all(backbone: Backbone) -> list[AttachedAdapter]:
    return [a for a in backbone.adapters.values() if isinstance(a, AttachedAdapter)]
