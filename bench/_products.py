"""The matrix products of one training step on CLIP ViT-B/32: how many, and their pace.

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

    def layer(self, *, attention: bool = True) -> list[tuple[int, int, int]]:
        """Products (tokens, from, to) of a layer, or of its MLP alone."""
        d, n = self.width, self.tokens
        around = [(n, d, d)] * 4 if attention else []
        return [*around, (n, d, 4 * d), (n, 4 * d, d)]


VISION = Tower(50, 768, (49, 3 * 32 * 32))


def step(tower: Tower, adapted: int, *, cached: bool = False) -> list[tuple[int, int, int]]:
    """Products of a row, forward and back, with adapters in the last `adapted` layers.

    Back, a frozen layer has one product for each of its own. The lowest adapter stands behind its
    layer's attention, so that this attention has none. With a cached prefix the layers below the
    adapters, and the patches, are not computed.
    """
    forward = tower.layer() * (adapted if cached else LAYERS)
    if tower.patches is not None and not cached:
        tokens, values = tower.patches
        forward.append((tokens, values, tower.width))
    return [*forward, *tower.layer() * (adapted - 1), *tower.layer(attention=False)]


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

    def forward(tower: Tower) -> int:
        return multiplications(step(tower, 1)) - multiplications(tower.layer(attention=False))

    full = 3 * (forward(VISION) + forward(padded))
    return full / sum(multiplications(step(tower, LAYERS)) for tower in (VISION, text))


def pace(text: Tower, rows: int, precision: str, rounds: int = 4) -> float:
    """Rows/s of the bare products of a step with adapters everywhere, in fp32 or bf16."""
    import torch
    from torch.nn.functional import linear

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = [shape for tower in (VISION, text) for shape in step(tower, LAYERS)]
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
