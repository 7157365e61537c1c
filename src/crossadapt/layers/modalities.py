"""Further modalities beside the pictures: who is there now, cross-attention to them, and fusion.

A vision tower knows nothing of the modalities of a clip. While `modalities` is open, a module
inside it looks up their tokens with `present_now`; `crossadapt.layers.temporal` tells which clip a
picture belongs to. With y (T, C) the tokens of a picture and E_m (T_m, D_m) those of modality m,
all in a narrow space of a channels:

    q_m = y Wq;  u_m = softmax(q_m (E_m Wk)^T / sqrt(a)) E_m Wv
    back_m(v) = LN2(y + LN1(v Wo)) - y
    w = softmax over the modalities that are there of <q_m Fq, u_m Fk> / sqrt(a)
    y <- y + eta sum_m w_m back_m(u_m Fv)                        eta trained, 0 at first

F are the fusion's own three maps (AdapterFusion, arXiv 2005.00247, in the narrow space); with one
modality it is that modality's back_m(u_m Fv).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossadapt.errors import UserError
from crossadapt.layers.temporal import clip_mask

Tokens = tuple[Tensor, Tensor]
"""Tokens (B, T, D) of B clips or pictures, and bool (B, T), True where there is one."""

_NOW: ContextVar[Mapping[str, Tokens] | None] = ContextVar("crossadapt_modalities", default=None)


@contextmanager
def modalities(given: Mapping[str, Tokens]) -> Iterator[None]:
    """Inside the block, pictures are encoded together with these modalities, by name.

    A clip whose mask is False throughout does not have the modality, which is the same as not
    giving it.
    """
    token = _NOW.set(given)
    try:
        yield
    finally:
        _NOW.reset(token)


def present_now() -> Mapping[str, Tokens]:
    """The modalities of the clips now being encoded; none outside `modalities`."""
    return _NOW.get() or {}


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    # Weights stay float32; a half-precision backbone outside autocast computes in its own type.
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return functional.linear(x, layer.weight.to(x.dtype), bias)


class CrossAttentionAdapter(nn.Module):
    """One modality's attention in a narrow space; ``2 C a + 2 D a + 3 a + 5 C`` parameters.

    Args:
        width: C, channels of the tower.
        source: D, channels of the modality's tokens.
        inner: a.
    """

    def __init__(self, width: int, source: int, inner: int) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.key, self.value = nn.Linear(source, inner), nn.Linear(source, inner)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def look(self, y: Tensor, tokens: Tokens, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and what they see, (K, T, a) each.

        Args:
            y: tokens of K pictures (K, T, C).
            tokens: of B clips.
            owner: which clip a picture belongs to, int (K,).
        """
        content, mask = tokens
        content = content.to(device=y.device, dtype=y.dtype)
        query = _linear(self.query, y)
        key, value = _linear(self.key, content)[owner], _linear(self.value, content)[owner]
        scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        # Large and finite: a clip without tokens gives a mean, which the fusion leaves out.
        scores = scores.masked_fill(~mask.to(y.device)[owner][:, None, :], -1e6)
        return query, scores.softmax(-1).to(value.dtype) @ value

    def back(self, y: Tensor, v: Tensor) -> Tensor:
        """``LN2(y + LN1(v Wo)) - y`` for v (K, T, a), in float32."""
        y = y.float()
        return self.norm2(y + self.norm1(_linear(self.out, v).float())) - y


class ModalityFusion(nn.Module):
    """How much each modality counts, per token; ``3 a^2`` parameters and the scalar eta."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.query = nn.Linear(inner, inner, bias=False)
        self.key = nn.Linear(inner, inner, bias=False)
        self.value = nn.Linear(inner, inner, bias=False)
        with torch.no_grad():
            self.value.weight.copy_(torch.full((inner, inner), 1e-6).fill_diagonal_(1.0))
        self.eta = nn.Parameter(torch.zeros(()))

    def weights(self, queries: list[Tensor], seen: list[Tensor], there: Tensor) -> Tensor:
        """Weights (K, T, M): not negative, 1 in sum over what is there, 0 when nothing is.

        Args:
            queries: of each of the M modalities (K, T, a).
            seen: what they saw, likewise.
            there: bool (K, M).
        """
        logits = torch.stack(
            [
                (_linear(self.query, q) * _linear(self.key, u)).sum(-1).float()
                for q, u in zip(queries, seen, strict=True)
            ],
            dim=-1,
        )
        logits = logits * self.query.in_features**-0.5
        there = there[:, None, :]
        return logits.masked_fill(~there, -1e6).softmax(-1) * there


class ModalityBranch(nn.Module):
    """Cross-attention to every modality that is there, and their fusion.

    Args:
        width: C, channels of the tower.
        sources: channels D of each modality's tokens, by name.
        inner: a.
    """

    def __init__(self, width: int, sources: Mapping[str, int], inner: int) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict(
            {name: CrossAttentionAdapter(width, size, inner) for name, size in sources.items()}
        )
        self.fusion = ModalityFusion(inner)
        self.sources = dict(sources)

    def forward(self, y: Tensor) -> Tensor:
        """What is added to the tokens y (K, T, C) of K pictures; 0 without modalities."""
        now = present_now()
        names = [name for name in self.sources if name in now]
        if not names:
            return torch.zeros_like(y)
        for name in names:
            self._check(name, now[name])
        clips = clip_mask(len(y), y.device)
        owner = clips.nonzero()[:, 0]
        queries, seen, there = [], [], []
        for name in names:
            adapter: CrossAttentionAdapter = self.adapters[name]  # type: ignore[assignment]
            query, found = adapter.look(y, now[name], owner)
            queries.append(query)
            seen.append(found)
            there.append(now[name][1].to(y.device).any(1)[owner])
        weights = self.fusion.weights(queries, seen, torch.stack(there, -1))
        total = torch.zeros_like(y, dtype=torch.float32)
        for place, name in enumerate(names):
            adapter = self.adapters[name]  # type: ignore[assignment]
            update = adapter.back(y, _linear(self.fusion.value, seen[place]))
            total = total + weights[..., place : place + 1] * update
        return (self.fusion.eta * total).to(y.dtype)

    def _check(self, name: str, tokens: Tokens) -> None:
        size = tokens[0].shape[-1]
        if size != self.sources[name]:
            raise UserError(
                f"the tokens of {name!r} have {size} channels, the adapter was made for "
                f"{self.sources[name]}",
                where=name,
                fix="give the tokens it was trained with",
            )
