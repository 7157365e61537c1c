"""Fold trained copies of parameters into the backbone, for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from crossadapt.adapters.attach import attached, detach
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


def merge(backbone: Backbone, name: str = "default") -> None:
    """Write an adapter's trained copies, at its strength, into the model and detach it.

    The one operation that changes a backbone: its fingerprint changes too. Meant for full
    training from scratch, whose product is a backbone. The result encodes as the adapter did (up to
    rounding: kernels may differ for weights without gradient), in the backbone's own dtype.

    Raises:
        UserError: the adapter inserts modules (a bottleneck's activation cannot be folded into a
            neighbouring weight), or other adapters, trained on the old weights, are attached.
    """
    adapter = attached(backbone, name)
    if not adapter.is_pure_override:
        raise UserError(
            f"{adapter.method} cannot be merged into the backbone",
            where=f"adapter {name!r}",
            fix="keep it as an adapter; only full, partial and projection can be merged",
        )
    others = [other for other in backbone.adapters if other != name]
    if others:
        raise UserError(
            "merging would change the weights that other adapters were trained on",
            where=f"attached: {', '.join(others)}",
            fix="detach them first",
        )
    new = {key: value.detach().clone() for key, value in adapter.overrides().items()}
    detach(backbone, name)
    parameters = dict(backbone.model.named_parameters())
    with torch.no_grad():
        for key, value in new.items():
            parameters[key].copy_(value)
