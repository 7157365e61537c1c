"""MV-Adapter: bottlenecks that see a clip's frames, tied across the towers of a video model.

Jin et al., "MV-Adapter: Multimodal Video Transfer Learning for Video Text Retrieval", CVPR 2024,
arXiv 2301.07868. In every layer of both towers, behind the MLP, with y its output:

    out = h + y + s A(y)                                  h the residual stream, s = 0.1

    text    z = QuickGELU(TRM_causal(LN(y Wd^T + bd + pos)));   A = z Wu^T + bu
    vision  z = QuickGELU(y Wd^T + bd)                    all tokens, d channels
            c_f, p_f: class token and mean patch token of frame f
            seq = QuickGELU(TRM(LN([CC, c_1..c_F, p_1..p_F] + pos)))     CC learnable
            alpha_f = 1 + FC2(ReLU(FC1([c'_f + p'_f, G(CC')])))
            A(class) = (c'_f * alpha_f) Wu^T + bu;   A(patch) = z Wu^T + bu
    tying   in the last n layers of both towers one factor f in R^32 is shared, and
            Wd <- Wd * (M f + b), on the input channels ("down-in") or the output channels

Trained on CLIP ViT-B/16 with 12 frames and 32 words: 3,401,728 parameters, 2.27 % of the frozen
model; with CLIP's 171,008 biases (`bias_lr`) 3,572,736, the published 2.39 %. A new adapter is
exactly the frozen model. A picture is a clip of one frame.

Ours: a tower without class token (SigLIP) gives ``A(patch) = (z + p'_f * alpha_f) Wu^T + bu``, and
a text tower that is not causal has a TRM that is not either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossadapt.adapters.attach import attach, attached
from crossadapt.adapters.plan import Insertion, Override, Plan
from crossadapt.adapters.registry import register
from crossadapt.errors import UserError
from crossadapt.layers.bottleneck import quick_gelu
from crossadapt.layers.temporal import (
    SmallTransformer,
    TemporalCalibration,
    clip_mask,
    to_clips,
    to_pictures,
)
from crossadapt.layers.tying import Factor, Tie

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.base import Backbone, Site


@dataclass(frozen=True)
class MVAdapterConfig:
    """Options of MV-Adapter."""

    d: int = 64
    """Bottleneck width. The paper uses 64, and 128 on ViT-L/14."""
    frames: int = 12
    """Most frames a clip may have. The paper uses 12, and 32 for long videos."""
    words: int | None = None
    """Most tokens a text may have; the text tower's own limit when unset. The paper uses 32, and
    64 for paragraphs."""
    heads: int = 2
    """Attention heads of the small transformer."""
    scale: float = 0.1
    """Factor s on what the branch adds."""
    shrink: int = 4
    """The calibration is computed in d / shrink channels."""
    tied: int = 2
    """How many of the last layers of both towers share a factor; 0 ties none."""
    factor: int = 32
    """Size of the shared factor."""
    position: Literal["down-in", "down-out"] = "down-in"
    """Which channels of the down-projection the factor scales. The paper's tables say down-in."""
    position_std: float = 0.01
    """Standard deviation of the initial position vectors of frames, all that tells frames apart in
    time. Published: 0.01; larger ones give the order of events more weight at first."""
    tie_start: Literal["published", "one"] = "published"
    """'published' starts the scaling at small random values as the released code does, 'one'
    starts at 1, which is the untied adapter."""
    bias_lr: float = 0.0
    """Also train the backbone's own biases, at this share of the learning rate. The released code
    does, at 0.02, and the published parameter shares count them; 0 leaves them frozen."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        for name in ("d", "frames", "heads", "shrink", "factor"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name} is {getattr(self, name)}", where=name, fix="give 1 or more"
                )
        fine = {
            "words": self.words is None or self.words >= 1,
            "heads": self.d % self.heads == 0,
            "shrink": self.d % self.shrink == 0,
            "tied": self.tied >= 0,
            "bias_lr": 0 <= self.bias_lr <= 1,
            "position_std": self.position_std >= 0,
            "position": self.position in ("down-in", "down-out"),
            "tie_start": self.tie_start in ("published", "one"),
        }
        for name, good in fine.items():
            if not good:
                raise UserError(f"{name} is {getattr(self, name)!r}", where=name, fix=_FIXES[name])


_FIXES = {
    "words": "give 1 or more, or leave it unset",
    "heads": "give a divisor of d",
    "shrink": "give a divisor of d",
    "tied": "give 0 or more layers",
    "position_std": "give 0.01 or thereabouts, at most about 1",
    "bias_lr": "give a share from 0 to 1, such as 0.02",
    "position": "give down-in or down-out",
    "tie_start": "give published or one",
}


class Branch(nn.Module):
    """``y + s up(act(down(y)))`` without the part in between, which the two towers differ in."""

    def __init__(self, width: int, config: MVAdapterConfig, tie: Tie | None) -> None:
        super().__init__()
        self.scale, self.position = config.scale, config.position
        self.down, self.up = nn.Linear(width, config.d), nn.Linear(config.d, width)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.tie = tie

    def down_weight(self) -> Tensor:
        """The down-projection (d, width) with the tie's scaling folded in."""
        if self.tie is None:
            return self.down.weight
        scaling = self.tie()
        return self.down.weight * (scaling if self.position == "down-in" else scaling[:, None])

    def reduce(self, y: Tensor) -> Tensor:
        """``y Wd^T + bd`` (..., d)."""
        weight, bias = self.down_weight().to(y.dtype), self.down.bias.to(y.dtype)
        return functional.linear(y, weight, bias)

    def expand(self, y: Tensor, z: Tensor) -> Tensor:
        """``y + s (z Wu^T + bu)``."""
        z = z.to(y.dtype)
        up = functional.linear(z, self.up.weight.to(y.dtype), self.up.bias.to(y.dtype))
        return y + self.scale * up


class VisionBranch(Branch):
    """The branch of the vision tower, for the tokens (K, T, width) of K frames."""

    def __init__(
        self, width: int, config: MVAdapterConfig, tie: Tie | None, *, class_token: bool
    ) -> None:
        super().__init__(width, config, tie)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        self.class_token = class_token
        self.time = TemporalCalibration(
            config.d,
            config.frames,
            config.heads,
            config.shrink,
            width,
            class_token,
            config.position_std,
        )

    def forward(self, y: Tensor) -> Tensor:
        """Adapt y; frames of a clip (see `temporal.clips`) see each other."""
        mask = clip_mask(len(y), y.device)
        if mask.shape[1] > self.time.frames:
            raise UserError(
                f"clips of {mask.shape[1]} frames for an mv-adapter made for {self.time.frames}",
                where="frames",
                fix=f"take fewer frames, or train with --method.frames {mask.shape[1]}",
            )
        z = quick_gelu(self.reduce(y))
        first = int(self.class_token)
        patches = to_clips(z[:, first:].mean(1).float(), mask)
        classes = to_clips(z[:, 0].float(), mask) if self.class_token else None
        found = to_pictures(self.time(classes, patches, mask), mask, len(y))[:, None].to(z.dtype)
        mixed = torch.cat([found, z[:, 1:]], 1) if self.class_token else z + found
        return self.expand(y, mixed)


class TextBranch(Branch):
    """The branch of the text tower, for tokens (B, W, width)."""

    def __init__(
        self, width: int, config: MVAdapterConfig, tie: Tie | None, *, words: int, causal: bool
    ) -> None:
        super().__init__(width, config, tie)
        nn.init.normal_(self.down.weight, std=(2 * width) ** -0.5)
        self.causal = causal
        self.place = nn.Parameter(torch.randn(words, config.d) * 0.01)
        self.norm = nn.LayerNorm(config.d)
        self.transformer = SmallTransformer(config.d, config.heads, width)

    def forward(self, y: Tensor) -> Tensor:
        """Adapt y."""
        length = y.shape[1]
        if length > len(self.place):
            raise UserError(
                f"a text of {length} tokens for an mv-adapter made for {len(self.place)}",
                where="words",
                fix="shorten the texts, or train without --method.words",
            )
        z = self.norm(self.reduce(y).float() + self.place[:length])
        visible = None
        if self.causal:
            visible = torch.ones(length, length, dtype=torch.bool, device=y.device).tril()
        return self.expand(y, quick_gelu(self.transformer(z, visible)))


@register("mv-adapter", MVAdapterConfig)
def plan(backbone: Backbone, config: MVAdapterConfig) -> Plan:
    """A branch behind every MLP of both towers; last layers tied, counted from the end.

    Raises:
        UserError: more tied layers, or words, than the towers have; a backbone that masks padding.
    """
    if backbone.masked_text:
        raise UserError(
            "mv-adapter's text branch mixes all positions, and this backbone pads texts under a "
            "mask that the branch does not see",
            where=backbone.source,
            fix="use a CLIP or SigLIP backbone, or another method such as uniadapter",
        )
    depth = {"vision": backbone.depth("vision"), "text": backbone.depth("text")}
    limit = backbone.tokens("text")
    if config.tied > min(depth.values()):
        raise UserError(
            f"tied is {config.tied} but the shallower tower has {min(depth.values())} layers",
            where="tied",
            fix=f"give at most {min(depth.values())}",
        )
    if config.words is not None and config.words > limit:
        raise UserError(
            f"words is {config.words} but the text tower reads {limit} tokens",
            where="words",
            fix="leave it unset",
        )
    factors = [Factor(config.factor) for _ in range(config.tied)]
    items: Plan = []
    for site in backbone.sites():
        if site.kind != "mlp" or site.tower not in depth:
            continue
        # From the end, so that towers of unequal depth tie their last layers too.
        behind = depth[site.tower] - 1 - site.layer
        tie = None
        if behind < config.tied:
            channels = site.width if config.position == "down-in" else config.d
            tie = Tie(factors[behind], channels, config.tie_start)
        items.append(Insertion(site, _branch(backbone, site, config, tie, limit)))
    if config.bias_lr:
        items += [
            Override(name, config.bias_lr)
            for name, parameter in backbone.model.named_parameters()
            if "bias" in name.rpartition(".")[2] and parameter.numel() > 1
        ]
    return items


def _branch(
    backbone: Backbone, site: Site, config: MVAdapterConfig, tie: Tie | None, limit: int
) -> Branch:
    if site.tower == "vision":
        return VisionBranch(site.width, config, tie, class_token=backbone.class_token)
    words = limit if config.words is None else config.words
    return TextBranch(site.width, config, tie, words=words, causal=backbone.causal_text)


def merge_ties(
    backbone: Backbone, name: str = "default", *, into: str = "merged"
) -> AttachedAdapter:
    """Fold the ties of a trained adapter into its down-projections, for inference.

    The result is an ordinary mv-adapter with ``tied=0`` that encodes as the given one does, is
    smaller and does less work; it can be saved but no longer trained as a tied one. (The branch
    itself is not linear and cannot be folded into the backbone.)

    Args:
        backbone: what the adapter is attached to.
        name: the adapter; left as it is.
        into: name of the new adapter, which becomes the active one.

    Raises:
        UserError: the adapter is of another method, or the name is taken.
    """
    tied = attached(backbone, name)
    if not isinstance(tied.config, MVAdapterConfig):
        raise UserError(
            f"{tied.method} has no ties to merge",
            where=f"adapter {name!r}",
            fix="name an mv-adapter",
        )
    merged = attach(backbone, replace(tied.config, tied=0), name=into, seed=tied.seed)
    values = {key: parameter.detach() for key, parameter in tied.named_trained()}
    with torch.no_grad():
        for key, parameter in merged.named_trained():
            parameter.copy_(values[key])
        for site, branch in tied.insertions.items():
            target = merged.insertions[site]
            if isinstance(branch, Branch) and isinstance(target, Branch):
                target.down.weight.copy_(branch.down_weight())
    merged.strength = tied.strength
    merged.train(tied.training)
    return merged
