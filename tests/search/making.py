"""Small collections for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from crossadapt.search.card import Card, View, vector_column

DIM = 16
CARD = Card(
    "c",
    DIM,
    "tiny:clip",
    "backbone-hash",
    views=(
        View("frozen", "hash-frozen"),
        View("birds-v1.2", "hash-birds", "runs/birds", "lora", 9),
    ),
    attributes={"colour": "string", "year": "int", "price": "float", "flag": "bool"},
)
FROZEN, BIRDS = "vector_frozen", vector_column("birds-v1.2")


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def vectors(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def listed(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def name(number: int) -> str:
    return f"{number:032x}"


def names(numbers: Sequence[int] | np.ndarray) -> list[str]:
    return [name(int(number)) for number in numbers]


def items(count: int, start: int = 0) -> pa.Table:
    """Rows `start` to `start + count` of a collection that is the same every time."""
    numbers = range(start, start + count)
    return pa.table(
        {
            "id": names(numbers),
            "item": [f"photos/{n}.jpg" for n in numbers],
            "kind": ["image"] * count,
            "texts": [[f"a thing {n}"] for n in numbers],
            "group": [f"g{n}" for n in numbers],
            "width": pa.array([100 + n for n in numbers], pa.int32()),
            "attr_colour": [("red", "green", "blue", None)[n % 4] for n in numbers],
            "attr_year": [2000 + n % 20 for n in numbers],
            "attr_price": [n / 2 for n in numbers],
            "attr_flag": [n % 2 == 0 for n in numbers],
            FROZEN: listed(vectors(start + count, 1)[start:]),
            BIRDS: listed(vectors(start + count, 2)[start:]),
        }
    )


def clustered(count: int, dim: int, clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around random centres, float32 (count, dim), and each one's cluster (count,)."""
    random = np.random.default_rng(seed)
    centres = unit(random.standard_normal((clusters, dim)))
    belongs = random.integers(clusters, size=count)
    spread = random.standard_normal((count, dim), np.float32) * (0.7 / dim**0.5)
    return unit(centres[belongs] + spread), belongs
