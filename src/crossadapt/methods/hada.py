"""HADA: graph attention over the token features of several frozen models, merged into one vector.

Nguyen, Nguyen and Gurrin, "HADA: A Graph-based Amalgamation Framework in Image-text Retrieval",
ECIR 2023, arXiv 2301.04742. The backbone is a fused one (``fuse:A+B``). Per picture, and by a
branch of its own per text, with x_i (n_i, W_i) the tokens and e_i (D_i) the embedding of model i:

    h_i = x_i A_i                          T channels, token 1 of each model is its hub
    g_i = GATv2(h_1 .. h_n)[hub i] G       H heads of G channels, then G; see `layers.hub_attention`
    z   = unit([g_1 .. g_n ; e_1 .. e_n] M)            P channels

z takes the front of the fused embedding, and `mix` decides what else is in it: nothing, or the
first model's own cosine with a trained share (the paper's second stage), or every model's.

Trained, for two models of width W and T = G = P = 512, H = 4, D_1 + D_2 = 1024: per branch
``2 (W T + T)`` + ``2 (T H G + H G) + 3 H G`` + ``H G G + G`` + ``(2 G + 1024) P + P`` = 4,993,024,
and the matching head's 4 P + 1: 9,988,097 at W = 768, or 9,998,339 with the first stage's batch
norms. Its objective (momentum queue, soft targets, matching) is the task `fusion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossadapt.adapters.plan import Join, Plan
from crossadapt.adapters.registry import register
from crossadapt.backbones.base import Backbone
from crossadapt.backbones.fused import ROOM, FusedBackbone
from crossadapt.backbones.tower_tokens import TokenFeatures
from crossadapt.errors import UserError, did_you_mean
from crossadapt.layers.hub_attention import Edges, HubAttention
from crossadapt.layers.matching import MatchingHead
from crossadapt.layers.norm_linear import NormLinear, masked_norm

MERGE_DROPOUT = 0.25
"""Behind the last layer of the form with batch norms, whatever the other dropout is."""
_CHOICES = {
    "norm": ("none", "batch"),
    "inputs": ("standardised", "unit", "raw"),
    "mix": ("none", "first", "all"),
}


@dataclass(frozen=True)
class HadaConfig:
    """Options of HADA."""

    transform: int = 512
    """Width T to which the tokens of every model are mapped."""
    graph: int = 512
    """Channels G of a head of the graph attention, and of what a hub gathers."""
    heads: int = 4
    """Heads H of the graph attention; they stand side by side."""
    output: int = 512
    """Size P of the trained part of the embedding, at most 512."""
    dropout: float = 0.4
    """Dropout probability; the paper's stages use 0.3 (with norm 'batch') and 0.7."""
    norm: Literal["none", "batch"] = "none"
    """'batch': batch norms behind every layer, as in the paper's first stage; what a row becomes in
    training then depends on its batch. 'none': the later form."""
    inputs: Literal["standardised", "unit", "raw"] = "standardised"
    """What happens to token features: length one and then one mean and deviation for all, measured
    on the training data; length one only; or nothing."""
    mix: Literal["none", "first", "all"] = "none"
    """What is added to the trained cosine: nothing, the first model's own with a trained share in
    [0.1, 0.9] that starts at 0.5 (the paper's second stage), or every model's."""
    own_edge: float = 0.9
    """Scalar of the edges from a model's tokens to its own hub."""
    other_edge: float | None = 0.7
    """Scalar of the edges from the other models' tokens to a hub; None drops these edges."""
    hub_edge: float = 1.1
    """Scalar of the edges between hubs."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built, naming the option."""
        for name in ("transform", "graph", "heads", "output"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name} is {getattr(self, name)}", where=name, fix="give 1 or more"
                )
        if self.output > ROOM:
            raise UserError(f"output is {self.output}", where="output", fix=f"give at most {ROOM}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}", where="dropout", fix="give [0, 1)")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UserError(
                    f"{name} is {value!r}", where=name, fix=did_you_mean(str(value), choices)
                )


class HadaBranch(nn.Module):
    """One modality's encoder: features of n models to unit vectors (B, P).

    Args:
        widths: W_i, channels of each model's tokens.
        sizes: D_i, of each model's embedding.
        config: options.
    """

    def __init__(self, widths: Sequence[int], sizes: Sequence[int], config: HadaConfig) -> None:
        super().__init__()
        norm, p, g = config.norm == "batch", config.dropout, config.graph
        edges = Edges(config.own_edge, config.other_edge, config.hub_edge)
        # The later form has no dropout in front of the first layer.
        first = p if norm else 0.0
        self.inputs = nn.ModuleList(NormLinear(w, config.transform, first, norm) for w in widths)
        self.attention = HubAttention(config.transform, g, config.heads, edges, p)
        self.reduce = NormLinear(config.heads * g, g, p, norm)
        self.gathered = nn.BatchNorm1d(g) if norm else None
        merged = len(widths) * g + sum(sizes)
        self.merge = NormLinear(merged, config.output, MERGE_DROPOUT if norm else p, norm)

    def forward(self, seen: Sequence[TokenFeatures]) -> Tensor:
        """Unit vectors (B, P) of B inputs as every model sees them."""
        masks = [s.mask for s in seen]
        tokens = [layer(s.tokens, s.mask) for layer, s in zip(self.inputs, seen, strict=True)]
        hubs = self._gather(tokens, masks)
        merged = torch.cat([hubs.flatten(1), *(s.embedding.to(hubs.dtype) for s in seen)], 1)
        return F.normalize(self.merge(merged).float(), dim=-1)

    def _gather(self, tokens: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """What each model's hub has gathered, (B, n, G)."""
        if self.gathered is None:
            return self.reduce(self.attention(tokens, masks))
        # The norms see all nodes, so all are computed although only the hubs are read.
        mask = torch.cat(list(masks), 1)
        nodes = self.reduce(torch.cat(self.attention.everything(tokens, masks), 1), mask)
        nodes = masked_norm(self.gathered, nodes, mask)
        sizes = [x.shape[1] for x in tokens]
        return torch.stack([part[:, 0] for part in nodes.split(sizes, 1)], 1)


class HadaFusion(nn.Module):
    """Both branches, the matching head, and the shares of the mix; see `adapters.joining`.

    Args:
        widths: of each model's tokens, per tower.
        sizes: of each model's embedding.
        config: options.
    """

    def __init__(
        self, widths: dict[str, list[int]], sizes: Sequence[int], config: HadaConfig
    ) -> None:
        super().__init__()
        self.config, self.sizes = config, list(sizes)
        self.branches = nn.ModuleDict(
            {tower: HadaBranch(widths[tower], sizes, config) for tower in ("vision", "text")}
        )
        self.matching = MatchingHead(config.output, config.dropout, config.norm == "batch")
        self.mix: nn.Parameter | None = None
        others = [0.5] * (len(sizes) - 1)
        if config.mix != "none":
            start = [0.5] if config.mix == "first" else [1.0, 1.0, *others]
            self.mix = nn.Parameter(torch.tensor(start))
        if config.inputs == "standardised":
            # Until `set_scale` was called, inputs are of length one and nothing else.
            self.register_buffer("mean", torch.zeros(()))
            self.register_buffer("deviation", torch.ones(()))

    def encode(self, tower: str, seen: Sequence[TokenFeatures]) -> Tensor:
        """Unit vectors (B, P)."""
        return self.branches[tower](self.prepare(seen))

    def prepare(self, seen: Sequence[TokenFeatures]) -> list[TokenFeatures]:
        """Features as the branches take them; no gradient goes back to the models."""
        return [
            TokenFeatures(self._scaled(s.embedding), self._scaled(s.tokens), s.mask) for s in seen
        ]

    def _scaled(self, x: Tensor) -> Tensor:
        x = x.detach().float()
        if self.config.inputs == "raw":
            return x
        x = F.normalize(x, dim=-1)
        return x if self.config.inputs == "unit" else (x - self.mean) / self.deviation

    @torch.no_grad()
    def set_scale(self, mean: float, deviation: float) -> None:
        """Mean and deviation of all values of unit features; only for 'standardised' inputs."""
        self.mean.fill_(mean)
        self.deviation.fill_(deviation)

    def weights(self) -> Tensor:
        """Shares (1 + n,) of the trained cosine and of each model's own; they sum to 1."""
        if self.mix is None:
            return self.matching.linear.bias.new_tensor([1.0] + [0.0] * len(self.sizes))
        if self.config.mix == "all":
            return self.mix / self.mix.sum()
        rest = self.mix.new_zeros(len(self.sizes) - 1)
        return torch.cat([1 - self.mix, self.mix, rest])

    @torch.no_grad()
    def limit(self) -> None:
        """Keep the shares inside their bounds; called after every update."""
        if self.mix is None:
            return
        if self.config.mix == "first":
            self.mix.clamp_(0.1, 0.9)
        else:
            lowest = self.mix.new_tensor([0.1, 0.1] + [0.01] * (len(self.mix) - 2))
            self.mix.copy_(torch.maximum(self.mix, lowest))


@register("hada", HadaConfig, task="fusion")
def plan(backbone: Backbone, config: HadaConfig) -> Plan:
    """The fusion of all members.

    Raises:
        UserError: the backbone is not a fused one.
    """
    if not isinstance(backbone, FusedBackbone):
        raise UserError(
            f"hada fuses several backbones, and {backbone.source} is one",
            where="backbone",
            fix="name two or more: --backbone fuse:pico-clip+FOLDER",
        )
    widths = {t: [m.width(t) for m in backbone.members] for t in ("vision", "text")}
    sizes = [m.embedding_dim for m in backbone.members]
    return [Join(HadaFusion(widths, sizes, config))]
