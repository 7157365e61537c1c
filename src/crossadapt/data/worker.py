"""The process that decodes: reads requests from standard input, answers each on standard output.

It is started by `crossadapt.data.pool` as a Python command, not through multiprocessing: the
caller's main script is never imported again, so decoding works the same from scripts without a
main guard, notebooks and tests.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from crossadapt.data.decoding import Unreadable, decode

Transform = Callable[[Any], Any]


def prepare(item: str, transform: Transform, max_pixels: int) -> np.ndarray:
    """Decode one item and transform it to uint8 (3, H, W).

    A transform with a method ``read_item(item, max_pixels)`` opens the item itself: that is how
    several frames of a video become one array.

    Raises:
        Unreadable: the picture cannot be decoded or transformed.
    """
    read_item = getattr(transform, "read_item", None)
    if read_item is not None:
        return np.asarray(read_item(item, max_pixels))
    image = decode(item, max_pixels=max_pixels)
    try:
        return np.asarray(transform(image))
    except Exception as error:
        # An odd picture (1 x 9000 pixels, say) must not end the run; that a transform works at
        # all has been checked on a plain picture before.
        raise Unreadable(f"preprocessing failed: {type(error).__name__}: {error}") from error


def answer_task(
    item: Any, content: bytes | None, transform: Transform, max_pixels: int
) -> dict[str, Any]:
    """What a transform with a method ``read_task(item, content, max_pixels)`` says about one item.

    Such a transform returns a dictionary instead of an array: plain JSON values, and bytes. It is
    how `pool.stream` gets more than pixels out of one decoding. A failure is ``{"reason": …}``.
    """
    try:
        return {"reason": None, **getattr(transform, "read_task")(item, content, max_pixels)}  # noqa: B009
    except Unreadable as error:
        return {"reason": error.reason}


def main() -> int:
    """Serve requests until standard input ends, which it also does when the parent dies.

    A request is a line ``[index, item]``, or ``[index, item, size]`` followed by that many bytes
    of content. An answer is a line of JSON; its ``blobs`` are names and sizes of what follows it.
    """
    # Ctrl-C reaches the whole process group; the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not get between our answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    try:
        setup = pickle.loads(bytes.fromhex(requests.readline().decode()))  # our own parent's bytes
        transform = setup["transform"]()
        pixels = np.load(setup["path"], mmap_mode="r+") if setup["path"] else None
    except Exception as error:
        _write(answers, {"fatal": f"{type(error).__name__}: {error}"})
        return 1
    _write(answers, {"ready": os.getpid()})
    for line in requests:
        index, item, *size = json.loads(line)
        content = requests.read(size[0]) if size else None
        if hasattr(transform, "read_task"):
            found = answer_task(item, content, transform, setup["max_pixels"])
        else:
            found = {"reason": _fill(pixels, index, item, transform, setup)}
        _write(answers, {"index": index, **found})
    return 0


def _fill(
    pixels: np.ndarray | None, index: int, item: str, transform: Transform, setup: dict[str, Any]
) -> str | None:
    """Put one item's array into the shared file; the reason if that is impossible."""
    try:
        array = prepare(item, transform, setup["max_pixels"])
        if array.shape != setup["shape"]:
            raise Unreadable(f"preprocessing failed: shape {array.shape}")
    except Unreadable as error:
        return error.reason
    if pixels is not None:
        pixels[index] = array
    return None


def _write(stream: IO[bytes], answer: dict[str, Any]) -> None:
    blobs = {name: value for name, value in answer.items() if isinstance(value, bytes)}
    plain = {name: value for name, value in answer.items() if name not in blobs}
    plain["blobs"] = {name: len(value) for name, value in blobs.items()}
    stream.write(json.dumps(plain).encode() + b"\n" + b"".join(blobs.values()))
    stream.flush()


class Pickled:
    """A transform as bytes, restored only inside the worker's error handling."""

    def __init__(self, transform: Transform) -> None:
        self.content = pickle.dumps(transform)

    def __call__(self) -> Transform:
        """The transform."""
        return pickle.loads(self.content)


def setup_line(transform: Transform, path: Path | None, shape: tuple[int, ...], cap: int) -> bytes:
    """The first line a worker reads."""
    setup = {
        "transform": Pickled(transform),
        "path": str(path) if path else "",
        "shape": shape,
        "max_pixels": cap,
    }
    return pickle.dumps(setup).hex().encode() + b"\n"
