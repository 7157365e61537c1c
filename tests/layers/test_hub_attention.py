"""Dense hub attention against an edge-list graph attention written from the paper's equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossadapt.layers.hub_attention import Edges, HubAttention, edge_scalars

SIZES = (5, 3)


def attention(edges: Edges | None = None, dropout: float = 0.0) -> HubAttention:
    torch.manual_seed(0)
    layer = HubAttention(8, 6, 2, edges or Edges(), dropout)
    torch.nn.init.normal_(layer.bias)
    return layer


def graph(batch: int = 4, sizes=SIZES, seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(batch, n, 8, generator=generator) for n in sizes]
    return tokens, [torch.ones(batch, n, dtype=torch.bool) for n in sizes]


def edge_list(sizes, edges: Edges) -> list[tuple[int, int, float]]:
    """(source, target, scalar) of one whole graph, self-loops with the mean of the incoming."""
    owner = [m for m, n in enumerate(sizes) for _ in range(n)]
    hubs = [owner.index(m) for m in range(len(sizes))]
    found = []
    for hub in hubs:
        incoming = []
        for node in range(len(owner)):
            if node == hub:
                continue
            if node in hubs:
                incoming.append((node, hub, edges.hubs))
            elif owner[node] == owner[hub]:
                incoming.append((node, hub, edges.own))
            elif edges.other is not None:
                incoming.append((node, hub, edges.other))
        mean = sum(s for _, _, s in incoming) / len(incoming)
        found += [*incoming, (hub, hub, mean)]
    return found


def by_edges(layer: HubAttention, nodes: Tensor, edges, target: int) -> Tensor:
    """Output of one node of one graph, head by head and edge by edge."""
    heads = []
    for k in range(layer.heads):
        rows = slice(k * layer.channels, (k + 1) * layer.channels)

        def mapped(linear, x, rows=rows):
            return linear.weight[rows] @ x + linear.bias[rows]

        scores, values = [], []
        for source, goal, scalar in edges:
            if goal == target:
                value = mapped(layer.source, nodes[source])
                inner = mapped(layer.target, nodes[target]) + value + scalar * layer.edge[k]
                inner = torch.where(inner > 0, inner, 0.2 * inner)
                scores.append(inner @ layer.vector[k])
                values.append(value)
        alpha = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
        heads.append((alpha[:, None] * torch.stack(values)).sum(0))
    return torch.cat(heads) + layer.bias


@pytest.mark.parametrize("edges", [Edges(), Edges(other=None), Edges(2.0, -1.0, 0.3)])
@pytest.mark.parametrize("sizes", [SIZES, (1, 1), (2, 4, 3)])
def test_it_equals_the_edge_list(edges: Edges, sizes) -> None:
    layer = attention(edges)
    tokens, masks = graph(2, sizes)
    found = layer(tokens, masks)
    assert found.shape == (2, len(sizes), 12)
    listed = edge_list(sizes, edges)
    starts = [sum(sizes[:m]) for m in range(len(sizes))]
    for row in range(2):
        nodes = torch.cat([x[row] for x in tokens])
        for m, start in enumerate(starts):
            expected = by_edges(layer, nodes, listed, start)
            torch.testing.assert_close(found[row, m], expected, atol=1e-5, rtol=1e-5)


def test_a_loop_carries_the_mean_of_the_incoming_edges() -> None:
    _, masks = graph(1)
    scalars, _ = edge_scalars(masks, Edges())
    # Hub 0: four own tokens, the other hub, two tokens of the other model.
    assert float(scalars[0, 0, 0]) == pytest.approx((4 * 0.9 + 1.1 + 2 * 0.7) / 7)
    assert float(scalars[0, 1, 5]) == pytest.approx((2 * 0.9 + 1.1 + 4 * 0.7) / 7)
    masks[0][0, 3:] = False
    scalars, _ = edge_scalars(masks, Edges())
    assert float(scalars[0, 0, 0]) == pytest.approx((2 * 0.9 + 1.1 + 2 * 0.7) / 5)


def test_rows_sum_to_one_and_padding_gets_nothing() -> None:
    layer = attention()
    tokens, masks = graph()
    masks[0][1, 3:] = False
    masks[1][2, 1:] = False
    weights = layer.weights(tokens, masks)
    assert weights.shape == (4, 2, 8, 2)
    torch.testing.assert_close(weights.sum(2), torch.ones(4, 2, 2))
    assert (weights[1, :, 3:5] == 0).all()
    assert (weights[2, :, 6:] == 0).all()
    # What stands in the padding does not matter.
    before = layer(tokens, masks)
    tokens[0][1, 3:] = 1e3
    assert torch.equal(layer(tokens, masks), before)
    # Nor does its length: the row alone, cut to its real length, comes out the same.
    alone = layer([tokens[0][1:2, :3], tokens[1][1:2]], [masks[0][1:2, :3], masks[1][1:2]])
    torch.testing.assert_close(alone[0], before[1])


def test_graphs_of_a_batch_do_not_meet() -> None:
    layer = attention()
    tokens, masks = graph()
    before = layer(tokens, masks)
    tokens[0][3] += 1
    after = layer(tokens, masks)
    assert torch.equal(after[:3], before[:3])
    assert not torch.allclose(after[3], before[3])


def test_a_token_reaches_every_hub_and_no_other_token() -> None:
    layer = attention()
    tokens, masks = graph()
    before, hubs = layer.everything(tokens, masks), layer(tokens, masks)
    tokens[0][0, 2] += 1
    after = layer.everything(tokens, masks)
    torch.testing.assert_close(torch.stack([x[:, 0] for x in before], 1), hubs)
    assert not torch.allclose(after[0][0, 0], before[0][0, 0])
    assert not torch.allclose(after[1][0, 0], before[1][0, 0])
    for model, other in ((0, [1, 3, 4]), (1, [1, 2])):
        assert torch.equal(after[model][:, other], before[model][:, other])


def test_without_cross_edges_the_other_model_acts_through_its_hub_alone() -> None:
    layer = attention(Edges(other=None))
    tokens, masks = graph()
    before = layer(tokens, masks)
    tokens[1][:, 1:] += 1
    after = layer(tokens, masks)
    assert torch.equal(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 1], before[:, 1])
    tokens[1][:, 0] += 1
    assert not torch.allclose(layer(tokens, masks)[:, 0], before[:, 0])


def test_order_of_tokens_does_not_matter() -> None:
    layer = attention()
    tokens, masks = graph()
    before = layer(tokens, masks)
    tokens[0] = tokens[0][:, [0, 4, 2, 1, 3]]
    torch.testing.assert_close(layer(tokens, masks), before)


def test_the_scalar_acts_inside_the_nonlinearity() -> None:
    tokens, masks = graph()
    layers = [attention(Edges(c, c, c)) for c in (0.9, 1.9)]
    plain, shifted = (layer(tokens, masks) for layer in layers)
    assert not torch.allclose(plain, shifted, atol=1e-4)
    for layer in layers:
        torch.nn.init.zeros_(layer.edge)
    plain, shifted = (layer(tokens, masks) for layer in layers)
    assert torch.equal(plain, shifted)


def test_parameters() -> None:
    """2 (T H C + H C) + 3 H C, as the released layer has at full size."""
    count = sum(p.numel() for p in HubAttention(512, 512, 4, Edges(), 0.0).parameters())
    assert count == 2_107_392
