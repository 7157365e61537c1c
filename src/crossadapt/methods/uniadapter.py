"""UniAdapter: per layer one down-projection for all towers, and one up-projection for each role.

Lu et al., "UniAdapter: Unified Parameter-Efficient Transfer Learning for Cross-modal Modeling",
ICLR 2024, arXiv 2302.06605. With the shared part z and the up-projections W_v, W_t, W_c of layer i:

    z(x)    = dropout(relu(W_d LN(x) + b_d))
    UA_v(x) = s (W_v z + b_v)               vision:  out = h + MLP(LN(h)) + UA_v(h)
    UA_t(x) = s (W_t z + b_t)               text:    out = y + UA_t(a)
    UA_c(x) = s LN_c(W_c z + b_c + W_t z + b_t)
                                            fusion:  out = y + UA_t(a) + UA_c(c)

h is the vision stream behind its attention; a and c are the text stream behind self- and
cross-attention, y the layer's own output. UA_t(a) in the fusion tower is the query-residual branch.
Backbones without fusion tower (CLIP, SigLIP) get UA_v and UA_t; where their towers differ in width,
the narrower one uses the leading columns of W_d and LN, which is ours and not in the paper.

Trained on BLIP base, with D = 768 and 12 layers: 12 ((4 D + 1) r + 7 D), that is 4,784,640 for
r = 128 and 18,945,024 for r = 512, and 395,266 in the two projections and the matching head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossadapt.adapters.plan import Insertion, Override, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

# Of BLIP, of CLIP, of open_clip; SigLIP has none.
_HEADS = (
    *("vision_proj", "text_proj", "itm_head"),
    *("visual_projection", "text_projection"),
    *("visual.proj", "text.text_projection"),
)
_STD = 0.02


@dataclass(frozen=True)
class UniAdapterConfig:
    """Options of UniAdapter."""

    r: int = 128
    """Bottleneck width; 128 and 512 are the published sizes."""
    scale: float = 0.1
    """Fixed factor s on every branch."""
    dropout: float = 0.0
    """Dropout probability behind the ReLU."""
    init: Literal["identity", "released"] = "identity"
    """`identity` starts at the frozen model; `released` as the authors' code, with random visual
    and cross-modal branches."""
    heads: bool = True
    """Also train copies of the projections into the shared space and of the matching head."""
    key_value: int = 0
    """Width of two further linear bottlenecks on the cross-attention's keys and values, one pair
    for all layers; 64 in the authors' image configurations, 0 (off) counts as in the paper."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        if self.r < 1:
            raise UserError(f"r is {self.r}", where="r", fix="give a bottleneck width of 1 or more")
        if not math.isfinite(self.scale) or self.scale == 0:
            raise UserError(f"scale is {self.scale}", where="scale", fix="give 0.1 or thereabouts")
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"dropout is {self.dropout}", where="dropout", fix="give a value in [0, 1)"
            )
        if self.init not in ("identity", "released"):
            raise UserError(f"init is {self.init!r}", where="init", fix="give identity or released")
        if self.key_value < 0:
            raise UserError(f"key_value is {self.key_value}", where="key_value", fix="give 0 or 64")


class Shared(nn.Module):
    """``dropout(relu(down(norm(x))))``: (..., D) to (..., r), the part of all roles.

    Built for the widest tower; x of fewer channels meets the leading columns.
    """

    def __init__(self, width: int, r: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, r)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Bottleneck activations of x."""
        width = x.shape[-1]
        gain, shift = self.norm.weight[:width], self.norm.bias[:width]
        x = functional.layer_norm(x.float(), (width,), gain, shift, self.norm.eps)
        z = functional.linear(x, self.down.weight[:, :width], self.down.bias)
        return self.dropout(torch.relu(z))


class Branch(nn.Module):
    """UA_v or UA_t: ``scale * up(shared(x))`` for x (..., D)."""

    by_token = True

    def __init__(self, shared: Shared, up: nn.Linear, scale: float) -> None:
        super().__init__()
        self.shared, self.up, self.scale = shared, up, scale

    def forward(self, x: Tensor) -> Tensor:
        """What joins the stream."""
        return (self.scale * self.up(self.shared(x))).to(x.dtype)


class CrossModalBranch(nn.Module):
    """UA_c: ``scale * norm(up(z) + textual(z))`` with z = shared(x), for x (..., D).

    It knows the textual up-projection, the same object as the text tower's.
    """

    def __init__(self, shared: Shared, up: nn.Linear, textual: nn.Linear, scale: float) -> None:
        super().__init__()
        self.shared, self.up, self.textual, self.scale = shared, up, textual, scale
        self.norm = nn.LayerNorm(up.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """What joins the stream."""
        z = self.shared(x)
        return (self.scale * self.norm((self.up(z) + self.textual(z)).float())).to(x.dtype)


class KeyValueBranch(nn.Module):
    """``gain * (up(down(x)))`` for picture tokens x (..., D_v): affine, with a trained gain."""

    def __init__(self, read: int, r: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(read, r), nn.Linear(r, width)
        self.gain = nn.Parameter(torch.ones(1))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """What joins the keys or the values."""
        return (self.gain * self.up(self.down(x))).to(x.dtype)


def up_projection(r: int, width: int, std: float) -> nn.Linear:
    """A linear layer r to `width` with normal weights of deviation `std` and zero bias."""
    up = nn.Linear(r, width)
    nn.init.normal_(up.weight, std=std)
    nn.init.zeros_(up.bias)
    return up


@register("uniadapter", UniAdapterConfig)
def plan(backbone: Backbone, config: UniAdapterConfig) -> Plan:
    """A branch at every residual site; the shared part of a layer is one object in all towers.

    Raises:
        UserError: the backbone has no such sites.
    """
    sites = [site for site in backbone.sites() if site.kind == "residual"]
    if not sites:
        raise UserError(
            "uniadapter needs a backbone with layers of its own",
            where=backbone.source,
            fix="adapt one of its members alone, or use the method hada",
        )
    widest = max(site.width for site in sites)
    released = config.init == "released"
    shared: dict[int, Shared] = {}
    textual: dict[int, nn.Linear] = {}
    items: Plan = []
    for site in sites:
        if site.layer not in shared:
            shared[site.layer] = Shared(widest, config.r, config.dropout)
        part = shared[site.layer]
        std = _STD if released and site.tower == "vision" else 0.0
        if site.tower == "fusion":
            # A norm behind a zero start would have huge gradients; its own gain is zero instead.
            up = up_projection(config.r, site.width, _STD)
            cross = CrossModalBranch(part, up, textual[site.layer], config.scale)
            if not released:
                nn.init.zeros_(cross.norm.weight)
            module: nn.Module = cross
        else:
            up = up_projection(config.r, site.width, std)
            module = Branch(part, up, config.scale)
        if site.tower == "text":
            textual[site.layer] = up
        items.append(Insertion(site, module, parallel=True))
    return [*items, *_key_value(backbone, config), *_trained_heads(backbone, config)]


def _key_value(backbone: Backbone, config: UniAdapterConfig) -> Plan:
    if not config.key_value:
        return []
    sites = [site for site in backbone.sites() if site.kind in ("key", "value")]
    if not sites:
        raise UserError(
            "key_value needs a fusion tower",
            where=backbone.source,
            fix="leave it at 0, or use a BLIP backbone",
        )
    made: dict[str, KeyValueBranch] = {}
    for site in sites:
        if site.kind not in made:
            made[site.kind] = KeyValueBranch(site.read_width, config.key_value, site.width)
    return [Insertion(site, made[site.kind], parallel=True) for site in sites]


def _trained_heads(backbone: Backbone, config: UniAdapterConfig) -> Plan:
    names = [name for name, _ in backbone.model.named_parameters()]
    heads = [n for n in names if any(n == h or n.startswith(f"{h}.") for h in _HEADS)]
    return [Override(name) for name in heads] if config.heads else []
