"""Attention of a few hub nodes over all tokens of several models: GATv2 on a star-shaped graph.

Brody, Alon and Yahav, "How Attentive are Graph Attention Networks?", arXiv 2105.14491, on the graph
of HADA (arXiv 2301.04742): the first token of each model is a hub, every hub receives an edge from
every node, other tokens receive none. Target t, source j, head k of C channels:

    e_tj = a_k . LeakyReLU_0.2(R_k x_t + L_k x_j + w_k s_tj)      s_tj the scalar of the edge
    o_t  = sum_j softmax_j(e_tj) L_k x_j + b                       heads side by side

As only hubs are read, this is additive cross-attention with one query per model, and is computed
so: densely, with masks, without a graph library. The edge of a node to itself carries the mean of
the node's incoming edges, which is what the graph operator of the released code does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2


@dataclass(frozen=True)
class Edges:
    """Scalars of the edges into a hub: from its own model's tokens, from another model's tokens
    (None drops those edges), and from another hub."""

    own: float = 0.9
    other: float | None = 0.7
    hubs: float = 1.1


class HubAttention(nn.Module):
    """One graph-attention layer of which the hubs are read.

    Parameters: ``2 (T H C + H C) + 3 H C``.

    Args:
        width: T, channels of the nodes.
        channels: C, channels of a head.
        heads: H.
        edges: scalars of the edges.
        dropout: probability, on the attention weights.
    """

    def __init__(self, width: int, channels: int, heads: int, edges: Edges, dropout: float) -> None:
        super().__init__()
        inner = heads * channels
        self.heads, self.channels, self.edges = heads, channels, edges
        self.source, self.target = nn.Linear(width, inner), nn.Linear(width, inner)
        self.edge = nn.Parameter(torch.empty(heads, channels))
        self.vector = nn.Parameter(torch.empty(heads, channels))
        self.bias = nn.Parameter(torch.zeros(inner))
        self.dropout = nn.Dropout(dropout)
        for weight in (self.source.weight, self.target.weight):
            nn.init.xavier_uniform_(weight)
        # Glorot on the shapes that the published operator gives to its vectors.
        nn.init.uniform_(self.vector, -_bound(heads, channels), _bound(heads, channels))
        nn.init.uniform_(self.edge, -_bound(inner, 1), _bound(inner, 1))

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Nodes (B, n_i, T) per model, hub first, and masks (B, n_i) to hubs (B, models, H C)."""
        return self._gathered(torch.cat(list(tokens), 1), self.weights(tokens, masks))

    def everything(self, tokens: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """What comes out of every node, (B, n_i, H C) per model.

        A token that receives nothing attends to itself alone: ``o_j = L x_j + b``. Nobody reads
        these, but a batch norm behind the layer is fed with them.
        """
        nodes = torch.cat(list(tokens), 1)
        hubs = self._gathered(nodes, self.weights(tokens, masks))
        values = self.source(nodes).unflatten(2, (self.heads, self.channels))
        alone = self.dropout(values.new_ones(*values.shape[:3], 1)) * values
        sizes = [x.shape[1] for x in tokens]
        found = []
        for index, rest in enumerate((alone.flatten(2) + self.bias).split(sizes, 1)):
            found.append(torch.cat([hubs[:, index : index + 1], rest[:, 1:]], 1))
        return found

    def weights(self, tokens: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Attention (B, models, nodes, H) of every hub; each row sums to 1, masked nodes get 0."""
        split = (self.heads, self.channels)
        values = self.source(torch.cat(list(tokens), 1)).unflatten(2, split)
        hubs = torch.stack([x[:, 0] for x in tokens], 1)
        queries = self.target(hubs).unflatten(2, split)
        scalars, there = edge_scalars(masks, self.edges)
        edge, vector = self.edge.to(values.dtype), self.vector.to(values.dtype)
        logits = []
        # Target by target: the sum over channels makes a tensor of the size of the values each.
        for t in range(len(tokens)):
            scalar = scalars[:, t, :, None, None].to(values.dtype)
            inner = torch.addcmul(values + queries[:, t, None], edge, scalar)
            logits.append(torch.einsum("bnhc,hc->bnh", F.leaky_relu(inner, SLOPE), vector))
        scores = torch.stack(logits, 1).float().masked_fill(~there[..., None], -torch.inf)
        return scores.softmax(2)

    def _gathered(self, nodes: Tensor, weights: Tensor) -> Tensor:
        """Outputs (B, models, H C) from nodes (B, N, T) and attention (B, models, N, H).

        The sum over nodes is taken in front of the linear map, ``L sum(w x) + b sum(w)``: equal to
        summing mapped nodes, and there are fewer hubs than nodes. With dropout, sum(w) is not 1.
        """
        shares = self.dropout(weights).transpose(2, 3)
        mixed = torch.einsum("bthn,bnc->bthc", shares.to(nodes.dtype), nodes)
        matrix = self.source.weight.unflatten(0, (self.heads, self.channels))
        offset = self.source.bias.unflatten(0, (self.heads, self.channels))
        found = torch.einsum("bthi,hci->bthc", mixed, matrix.to(mixed.dtype))
        found = found + offset * shares.sum(3, keepdim=True)
        return found.flatten(2) + self.bias


def edge_scalars(masks: Sequence[Tensor], edges: Edges) -> tuple[Tensor, Tensor]:
    """Scalars (B, models, nodes) of the edges into each hub, and which edges there are.

    Args:
        masks: bool (B, n_i) of each model, True for nodes that exist; hubs always do.
        edges: the scalars.
    """
    mask = torch.cat(list(masks), 1)
    models = len(masks)
    places = [(model, place) for model, m in enumerate(masks) for place in range(m.shape[1])]
    member = torch.tensor([model for model, _ in places], device=mask.device)
    hub = torch.tensor([place == 0 for _, place in places], device=mask.device)
    own = member[None] == torch.arange(models, device=mask.device)[:, None]
    other = 0.0 if edges.other is None else edges.other
    plain = torch.where(own, edges.own, torch.where(hub[None], edges.hubs, other))
    drawn = own | hub[None] if edges.other is None else torch.ones_like(own)
    there = drawn[None] & mask[:, None]
    itself = own & hub[None]
    incoming = (there & ~itself).to(plain.dtype)
    mean = (incoming * plain).sum(2, keepdim=True) / incoming.sum(2, keepdim=True)
    return torch.where(itself[None], mean, plain.expand_as(incoming)), there


def _bound(rows: int, columns: int) -> float:
    return math.sqrt(6 / (rows + columns))
