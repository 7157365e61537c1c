"""CM3T: multi-head adapters and gated prefixes, and cross-attention to further modalities.

Agrawal et al., "CM3T: Framework for Efficient Multimodal Learning for Inhomogeneous Interaction
Datasets", WACV 2025, arXiv 2501.03332. The paper's equations, sizes and recipe could not be read:
this is built from its abstract, a description of its figure, and the works it rests on (prefixes
and adapters in one frame, arXiv 2110.04366; AdapterFusion, arXiv 2005.00247). In every layer of
the vision tower, h = LN1(x) and heads i of d = C / n channels:

    prefix          D_i = softmax(h P_i) U_i;  head_i <- (1 - g_i) head_i + g_i D_i     l prefixes
    head adapter    head_i <- head_i + s (ReLU(h A_i + b_i) B_i + c_i)                  r channels
    (concatenate, output projection, residual: y)
    modalities      y <- y + eta z'      cross-attention to each, fused: `layers.modalities`
    MLP adapter     beside the MLP, s ReLU(LN2(y) Wd + bd) Wu + s bu                C / 4 channels

Trained per layer: n (C r + r + r d) + C, n (C l + l d) + n, and C^2/2 + C/4 + C; for each modality
of D channels 2 C a + 2 D a + 3 a + 5 C with a = C/8, for the fusion 3 a^2 + 1. On CLIP ViT-B/32
without modalities 7,395,984, which is 8.42 % of its vision tower and 4.66 % of the adapted model
(the paper reports 12.8 % of a backbone it does not name in what could be read). A new adapter is
exactly the frozen model, except with the gate ``mass``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from crossadapt.adapters.attach import attach, attached
from crossadapt.adapters.inside import head_count
from crossadapt.adapters.plan import Heads, Insertion, Plan, Stream
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError, did_you_mean
from crossadapt.layers.bottleneck import ParallelBottleneck
from crossadapt.layers.head_adapters import GATES, HeadAdapter, HeadBranches, HeadPrefix
from crossadapt.layers.modalities import ModalityBranch

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.base import Backbone, Site


@dataclass(frozen=True)
class CM3TConfig:
    """Options of CM3T."""

    r: int = 16
    """Bottleneck width of the adapter of each head; 0 leaves these adapters out."""
    prefix: int = 16
    """Prefixes l of each head; 0 leaves them out."""
    gate: Literal["scalar", "mass", "add"] = "scalar"
    """How prefixes join a head: by a trained number per head that starts at 0, by the share of
    attention they would get (prefix tuning itself; the start is not the frozen model), or added."""
    mlp: int = 4
    """The branch beside the MLP has 1/mlp of the tower's channels; 0 leaves it out."""
    scale: float = 0.5
    """Fixed factor s on the head adapters and the branches beside the MLPs."""
    dropout: float = 0.1
    """Dropout probability behind the ReLU of both."""
    modalities: tuple[str, ...] = ()
    """Further modalities as NAME=CHANNELS, such as `text=512 signals=18`. The task `multimodal`
    fills it in from the data."""
    inner: int = 8
    """Cross-attention and fusion work in 1/inner of the tower's channels."""
    layers: int | None = None
    """How many of the last layers are adapted at all; all of them when unset. Few layers cost
    little, because nothing has to be computed backwards below them."""
    cross_layers: int | None = None
    """How many of the last layers have cross-attention; as many as are adapted when unset."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        for name in ("r", "prefix", "mlp"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{name} is {getattr(self, name)}", where=name, fix="give 0 or more"
                )
        for name in ("inner", "layers", "cross_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}", where=name, fix="give 1 or more")
        if self.gate not in GATES:
            raise UserError(
                f"gate is {self.gate!r}", where="gate", fix=did_you_mean(self.gate, GATES)
            )
        if not (self.scale != 0 and abs(self.scale) < float("inf")):
            raise UserError(f"scale is {self.scale}", where="scale", fix="give 0.5 or thereabouts")
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"dropout is {self.dropout}", where="dropout", fix="give a value in [0, 1)"
            )
        self.sources()

    def sources(self) -> dict[str, int]:
        """Channels of each modality by name.

        Raises:
            UserError: not NAME=CHANNELS, or a name twice.
        """
        found: dict[str, int] = {}
        for text in self.modalities:
            name, _, size = text.partition("=")
            if not (name.isidentifier() and size.isdecimal() and int(size) > 0):
                raise UserError(
                    f"{text!r} is no modality", where="modalities", fix="write text=512"
                )
            if name in found:
                raise UserError(f"the modality {name!r} comes twice", where="modalities")
            found[name] = int(size)
        return found


@register("cm3t", CM3TConfig)
def plan(backbone: Backbone, config: CM3TConfig) -> Plan:
    """Branches in, behind and beside every attention and MLP of the vision tower.

    Raises:
        UserError: heads that cannot be reached one by one, or sizes the tower does not allow.
    """
    width, depth = backbone.width("vision"), backbone.depth("vision")
    sources = config.sources()
    adapted = depth if config.layers is None else config.layers
    crossed = adapted if config.cross_layers is None else config.cross_layers
    for option, size, most in (
        ("mlp", config.mlp, width),
        ("inner", config.inner, width),
        ("layers", adapted, depth),
        ("cross_layers", crossed, adapted),
    ):
        if size > most:
            raise UserError(
                f"{option} is {size}, {backbone.source} and the other options allow {most}",
                where=option,
                fix=f"give at most {most}",
            )
    items: Plan = []
    for site in backbone.sites():
        if site.tower != "vision" or site.layer < depth - adapted:
            continue
        if site.kind == "attention":
            if config.r or config.prefix:
                items.append(Heads(site, _heads(backbone, site, config)))
            if sources and site.layer >= depth - crossed:
                items.append(Stream(site, ModalityBranch(width, sources, width // config.inner)))
        elif site.kind == "mlp" and config.mlp:
            branch = ParallelBottleneck(
                width, width // config.mlp, scale=config.scale, dropout=config.dropout
            )
            items.append(Insertion(site, branch, parallel=True))
    return items


def _heads(backbone: Backbone, site: Site, config: CM3TConfig) -> HeadBranches:
    count = head_count(backbone, site)
    prefix = HeadPrefix(site.width, count, config.prefix, config.gate) if config.prefix else None
    adapter = None
    if config.r:
        adapter = HeadAdapter(
            site.width, count, config.r, scale=config.scale, dropout=config.dropout
        )
    return HeadBranches(prefix, adapter)


def add_modalities(
    backbone: Backbone,
    name: str = "default",
    *,
    modalities: Mapping[str, int],
    into: str,
    freeze: bool = True,
) -> AttachedAdapter:
    """Plug further modalities into a trained adapter: the second stage of the method.

    Args:
        backbone: what the adapter is attached to.
        name: the trained adapter; left as it is.
        modalities: channels of the new modalities by name.
        into: name of the new adapter, which becomes the active one.
        freeze: everything that was there before needs no gradient any more, fusion included, so
            that with the new modalities absent the result stays what it was. Frozen tensors are
            saved with the others.

    Raises:
        UserError: the adapter is of another method, has one of the modalities already, or the
            name is taken.
    """
    before = attached(backbone, name)
    if not isinstance(before.config, CM3TConfig):
        raise UserError(
            f"{before.method} takes no modalities", where=f"adapter {name!r}", fix="name a cm3t one"
        )
    added = tuple(f"{key}={size}" for key, size in modalities.items())
    config = replace(before.config, modalities=(*before.config.modalities, *added))
    after = attach(backbone, config, name=into, seed=before.seed)
    known = before.trained()
    with torch.no_grad():
        for key, parameter in after.named_trained():
            if key in known:
                parameter.copy_(known[key])
                parameter.requires_grad_(not freeze)
    after.strength = before.strength
    after.train(before.training)
    return after
