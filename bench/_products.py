"""The matrix products of a pass and a training step of CLIP ViT-B/32: how many, and their pace.

Counted are the products with frozen weights, forward and back to the input: those of the adapters
(a hundredth), of the attention scores, and everything that is no product come on top.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

LAYERS = 12


@dataclass(frozen=True)
class Tower:
    """Tokens of a row and width of a tower; `patches` enter through a product of their own."""

    tokens: int
    width: int
    patches: tuple[int, int] | None = None

    def attention(self) -> list[tuple[int, int, int]]:
        """Products (tokens, from, to) around the attention of a layer."""
        return [(self.tokens, self.width, self.width)] * 4

    def mlp(self, tokens: int) -> list[tuple[int, int, int]]:
        """Products (tokens, from, to) of a layer's MLP."""
        return [(tokens, self.width, 4 * self.width), (tokens, 4 * self.width, self.width)]

    def mlps(self, layers: int) -> list[tuple[int, int, int]]:
        """Those of the last `layers` layers; the last one's are of the pooled token."""
        return [*self.mlp(self.tokens) * (layers - 1), *self.mlp(1)]

    def embedding(self) -> list[tuple[int, int, int]]:
        """The product that pictures enter through."""
        return [] if self.patches is None else [(*self.patches, self.width)]


VISION = Tower(50, 768, (49, 3 * 32 * 32))


def step(tower: Tower, adapted: int, *, cached: bool = False) -> list[tuple[int, int, int]]:
    """Products of a row, forward and back, with adapters in the last `adapted` layers.

    Back, a frozen layer has one product for each of its own. The lowest adapter stands behind its
    layer's attention, so that this attention has none. With a cached prefix the layers below the
    adapters, and the patches, are not computed.
    """
    start = LAYERS - adapted if cached else 0
    back = [*tower.attention() * (adapted - 1), *tower.mlps(adapted)]
    return [*forward(tower, start), *back]


def forward(tower: Tower, start: int = 0) -> list[tuple[int, int, int]]:
    """Products of a row through the layers from `start` on; before the first one, the patches."""
    layers = LAYERS - start
    entry = [] if start else tower.embedding()
    return [*entry, *tower.attention() * layers, *tower.mlps(layers)]


def multiplications(products: list[tuple[int, int, int]]) -> int:
    """Multiplications of products."""
    return sum(rows * below * above for rows, below, above in products)


def most_from_prefix(text: Tower, adapted: int) -> float:
    """Ratio of the multiplications of a step without and with a cached prefix, both towers."""
    plain, cached = (
        sum(multiplications(step(tower, adapted, cached=c)) for tower in (VISION, text))
        for c in (False, True)
    )
    return plain / cached


def most_from_less_work(text: Tower, padded: Tower) -> float:
    """Ratio of the multiplications of full fine-tuning on padded texts and of our step."""

    def whole(tower: Tower) -> int:
        layer = [*tower.attention(), *tower.mlp(tower.tokens)]
        return multiplications([*layer * LAYERS, *tower.embedding()])

    full = 3 * (whole(VISION) + whole(padded))
    return full / sum(multiplications(step(tower, LAYERS)) for tower in (VISION, text))


def pace(shapes: list[tuple[int, int, int]], rows: int, precision: str, rounds: int = 4) -> float:
    """Rows/s of bare products (tokens of a row, from, to), in fp32 or bf16."""
    import torch
    from torch.nn.functional import linear

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    operands = {
        (n, a, b): (torch.randn(rows * n, a, dtype=dtype), torch.randn(b, a, dtype=dtype))
        for n, a, b in set(shapes)
    }
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds):
            start = time.perf_counter()
            for shape in shapes:
                linear(*operands[shape])
            seconds.append(time.perf_counter() - start)
    return rows / min(seconds[1:] or seconds)
