"""The three projections of a packed attention layer as linear layers of their own.

`nn.MultiheadAttention` keeps queries, keys and values in one ``in_proj_weight`` (3 D, D) and reads
``out_proj.weight`` without calling that layer, so tuners that replace linear layers (LoRA and the
like) find nothing to replace, or something that is never used.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

PARTS = ("q_proj", "k_proj", "v_proj")


class PackedPart(nn.Linear):
    """One third of a packed projection, as a linear layer D -> D without tensors of its own.

    `weight` and `bias` are read from the packed tensors at every use, so it follows them to
    another device and sees what stands in for them.
    """

    attention: Any

    def __init__(self, attention: nn.Module, index: int, width: int) -> None:
        nn.Module.__init__(self)
        self.in_features = self.out_features = width
        self.index = index
        # Not a child: the attention layer would be its own descendant.
        self.__dict__["attention"] = attention

    def _rows(self, packed: Tensor) -> Tensor:
        start = self.index * self.out_features
        return packed[start : start + self.out_features]

    @property
    def weight(self) -> Any:  # pyrefly: ignore[bad-override]
        """The part's rows (D, D) of ``in_proj_weight``."""
        return self._rows(self.attention.in_proj_weight)

    @property
    def bias(self) -> Any:  # pyrefly: ignore[bad-override]
        """The part's rows (D) of ``in_proj_bias``; None without bias."""
        packed = self.attention.in_proj_bias
        return None if packed is None else self._rows(packed)

    def forward(self, input: Tensor) -> Tensor:
        """Input (..., D) to (..., D)."""
        return functional.linear(input, self.weight, self.bias)


class UnpackedAttention(nn.Module):
    """The same attention over the same parameters, with the parts ``q_proj`` … ``out_proj``.

    Args:
        attention: self-attention with one width, biases of one kind and no dropout; unchanged,
            and its table of parameters is shared.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self._parameters = attention._parameters
        self.heads = attention.num_heads
        self.q_proj, self.k_proj, self.v_proj = (
            PackedPart(self, index, attention.embed_dim) for index in range(len(PARTS))
        )
        self.out_proj = attention.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Inputs (B, L, D) and an additive mask (L, L) or (B heads, L, L) to (B, L, D)."""
        parts = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if attn_mask is not None:
            attn_mask = attn_mask.to(q.dtype)
            if attn_mask.ndim == 3:
                attn_mask = attn_mask.unflatten(0, (-1, self.heads))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def unpack_attention(model: nn.Module, path: str) -> None:
    """Replace the packed attention at a dotted path of `model` by an `UnpackedAttention`."""
    parent, _, leaf = path.rpartition(".")
    attention = model.get_submodule(path)
    if not isinstance(attention, nn.MultiheadAttention):
        raise TypeError(f"{path} is a {type(attention).__name__}, not a packed attention")
    setattr(model.get_submodule(parent), leaf, UnpackedAttention(attention))
