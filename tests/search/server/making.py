"""A real collection of small pictures, and a real server on a free port."""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
from fastapi import FastAPI
from PIL import Image, ImageDraw
from tests.adapting import train

import crossadapt
from crossadapt.adapters.registry import make_config
from crossadapt.search.card import Card, attribute_column, vector_column
from crossadapt.search.collection import Collections
from crossadapt.search.embedder import Embedder
from crossadapt.search.server.running import make_server, take_port
from crossadapt.search.server.settings import Settings

COLOURS = ("red", "green", "blue", "yellow", "black", "orange")
SHAPES = ("square", "circle", "bar", "frame")
ATTRIBUTES = {"colour": "string", "shape": "string", "number": "int", "filled": "bool"}


def picture(number: int, size: int = 48) -> Image.Image:
    """One of the coloured shapes; no two numbers give the same pixels."""
    colour, shape = COLOURS[number % 6], SHAPES[number // 6 % 4]
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    box = (8, 8, 24 + number % 16, 24 + number // 4 % 16)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "frame":
        draw.rectangle(box, outline=colour, width=3)
    elif shape == "bar":
        draw.rectangle((box[0], 20, box[2], 26), fill=colour)
    else:
        draw.rectangle(box, fill=colour)
    image.putpixel((0, 0), (number % 256, number // 256, 0))
    return image


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def make_adapter(folder: Path, seed: int, method: str = "cross-modal-adapter") -> Path:
    """A trained adapter of `tiny:clip`."""
    backbone = crossadapt.load("tiny:clip")
    options = {"r": 4, "d_s": 6} if method == "cross-modal-adapter" else {}
    adapter = crossadapt.attach(backbone, make_config(method, options), seed=seed)
    train(backbone, adapter, steps=3)
    return crossadapt.save_adapter(backbone, "default", folder)


def make_rows(embedder: Embedder, names: Mapping[str, str], folder: Path, count: int) -> pa.Table:
    """Rows of `count` pictures, written to `folder`; `names` are views to the embedder's."""
    folder.mkdir(exist_ok=True)
    images = [picture(number) for number in range(count)]
    contents = [encoded(image) for image in images]
    for number, content in enumerate(contents):
        (folder / f"{number:04}.png").write_bytes(content)
    pixels = np.stack([embedder.prepare(image) for image in images])
    columns = {
        "id": [hashlib.sha256(content).hexdigest()[:32] for content in contents],
        "item": [str(folder / f"{number:04}.png") for number in range(count)],
        "kind": ["image"] * count,
        "texts": [[f"a {COLOURS[n % 6]} {SHAPES[n // 6 % 4]}, number {n}"] for n in range(count)],
        "group": [str(n) for n in range(count)],
        "width": [48] * count,
        "height": [48] * count,
        "bytes": [len(content) for content in contents],
        "modified": [(folder / f"{n:04}.png").stat().st_mtime for n in range(count)],
        "duration": [0.0] * count,
        "thumbnail": [encoded(image.resize((24, 24)), "JPEG") for image in images],
        "added": [datetime(2026, 1, 1, tzinfo=UTC)] * count,
        attribute_column("colour"): [COLOURS[n % 6] for n in range(count)],
        attribute_column("shape"): [SHAPES[n // 6 % 4] for n in range(count)],
        attribute_column("number"): list(range(count)),
        attribute_column("filled"): [n // 6 % 4 != 3 for n in range(count)],
    }
    for view, known in names.items():
        columns[vector_column(view)] = list(embedder.pictures(pixels, known))
    return pa.table(columns)


def make_collection(
    home: Collections,
    name: str,
    adapters: Mapping[str, Path],
    folder: Path,
    count: int = 96,
    backbone: str = "tiny:clip",
) -> None:
    """A collection with the frozen view and one for each adapter."""
    embedder = Embedder.open(backbone, adapters, device="cpu", precision="fp32")
    views = ("frozen", *adapters)
    card = Card(
        name=name,
        dim=embedder.dim,
        backbone=backbone,
        backbone_fingerprint=embedder.backbone.fingerprint,
        views=tuple(embedder.view(view) for view in views),
        attributes=ATTRIBUTES,
        precision="fp32",
        facts={"ledger": {"count": 1, "reasons": {"truncated": 1}}},
    )
    with home.create(card) as collection:
        collection.upsert(make_rows(embedder, {v: v for v in views}, folder, count))


@contextlib.contextmanager
def serving(app: FastAPI, settings: Settings) -> Iterator[str]:
    """The address of a running server, which is stopped in the end."""
    taken = take_port("127.0.0.1", 0)
    port = taken.getsockname()[1]
    server = make_server(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        assert server.started
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        taken.close()
        assert not thread.is_alive()


def client(address: str, **options: object) -> httpx.Client:
    """A client that takes no proxy from the environment."""
    return httpx.Client(base_url=address, trust_env=False, timeout=60, **options)
