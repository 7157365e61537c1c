"""A real collection for the tests of queries: OpenMoji pictures, two views, one embedder.

It is made once per process. The adapter is trained nothing: its tensors are moved a little, so
that its view differs from the frozen one and both still find what they are asked for.
"""

from __future__ import annotations

import atexit
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pyarrow as pa
import torch

import crossadapt
from crossadapt.data import read_manifest
from crossadapt.data.decoding import decode
from crossadapt.data.openmoji import picture_bytes
from crossadapt.methods.cross_modal_adapter import CrossModalAdapterConfig
from crossadapt.search.card import Card
from crossadapt.search.collection import Collection, Collections
from crossadapt.search.embedder import Embedder

NAMED = {
    "apple": "1F34E", "heart": "2764", "cat": "1F431", "dog": "1F436", "beach": "1F3D6",
    "crying": "1F62D", "snowman": "26C4", "pear": "1F350", "camel": "1F42A",
}  # fmt: skip
COUNT = 180
SEARCHED = ["frozen", "nudged"]


@dataclass(frozen=True)
class World:
    """What the tests share; not to be changed."""

    store: Path
    collection: Collection
    embedder: Embedder
    ids: dict[str, str]
    """Name in `NAMED` to item id."""


@cache
def world() -> World:
    """The collection ``emoji`` in a temporary store."""
    root = Path(mkdtemp(prefix="crossadapt-query-world-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    embedder = Embedder.open("pico-clip", {"nudged": nudged(root / "adapter")}, precision="fp32")
    table = read_manifest("openmoji").table.to_pylist()
    items: dict[str, list[dict]] = {}
    for row in table:
        items.setdefault(row["item"], []).append(row)
    wanted = [f"openmoji:{code}" for code in NAMED.values()]
    wanted = [item for item in wanted if item in items]
    rest = [item for item in items if item not in wanted]
    names = [*wanted, *rest[:: len(rest) // (COUNT - len(wanted))]][:COUNT]
    pixels = np.stack([embedder.prepare(decode(name)) for name in names])
    card = Card(
        name="emoji",
        dim=embedder.dim,
        backbone="pico-clip",
        views=tuple(embedder.view(view) for view in SEARCHED),
        attributes={"flag": "bool", "codepoint": "string"},
        precision="fp32",
    )
    collections = Collections(root / "store")
    with collections.create(card) as collection:
        collection.upsert(rows(names, items, pixels, embedder))
    by_item = dict(zip(names, found_ids(names), strict=True))
    ids = {
        name: by_item[f"openmoji:{code}"]
        for name, code in NAMED.items()
        if f"openmoji:{code}" in by_item
    }
    return World(root / "store", collections.open("emoji"), embedder, ids)


def nudged(folder: Path, seed: int = 0) -> Path:
    """An adapter folder whose tensors are small random numbers."""
    backbone = crossadapt.load("pico-clip")
    adapter = crossadapt.attach(backbone, CrossModalAdapterConfig(r=4, d_s=6))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.trained().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    crossadapt.save_adapter(backbone, adapter.name, folder)
    return folder


def found_ids(names: list[str]) -> list[str]:
    """Ids as the indexing job makes them, 32 hex digits."""
    import hashlib

    return [hashlib.sha256(name.encode()).hexdigest()[:32] for name in names]


def rows(names: list[str], items: dict, pixels: np.ndarray, embedder: Embedder) -> pa.Table:
    columns: dict[str, object] = {
        "id": found_ids(names),
        "item": names,
        "kind": ["image"] * len(names),
        "texts": [[row["text"] for row in items[name]] for name in names],
        "group": [items[name][0]["group"] for name in names],
        "width": pa.array([256] * len(names), pa.int32()),
        "height": pa.array([256] * len(names), pa.int32()),
        "duration": [0.0] * len(names),
        "thumbnail": [picture_bytes(name) for name in names],
        "attr_flag": [items[name][0]["flag"] for name in names],
        "attr_codepoint": [items[name][0]["codepoint"] for name in names],
    }
    for view in SEARCHED:
        vectors = embedder.pictures(pixels, view)
        flat = pa.array(vectors.reshape(-1), pa.float32())
        columns[f"vector_{view}"] = pa.FixedSizeListArray.from_arrays(flat, embedder.dim)
    return pa.table(columns)
