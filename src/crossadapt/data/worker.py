"""The process that decodes: reads item names from standard input, answers with one line each.

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
from typing import Any

import numpy as np

from crossadapt.data.decoding import Unreadable, decode

Transform = Callable[[Any], Any]


def prepare(item: str, transform: Transform, max_pixels: int) -> np.ndarray:
    """Decode one item and transform it to uint8 (3, H, W).

    Raises:
        Unreadable: the picture cannot be decoded or transformed.
    """
    image = decode(item, max_pixels=max_pixels)
    try:
        return np.asarray(transform(image))
    except Exception as error:
        # An odd picture (1 x 9000 pixels, say) must not end the run; that a transform works at
        # all has been checked on a plain picture before.
        raise Unreadable(f"preprocessing failed: {type(error).__name__}: {error}") from error


def main() -> int:
    """Serve requests until standard input ends, which it also does when the parent dies."""
    # Ctrl-C reaches the whole process group; the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not get between our answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    try:
        setup = pickle.loads(bytes.fromhex(requests.readline().decode()))  # our own parent's bytes
        transform = setup["transform"]()
        pixels = np.load(setup["path"], mmap_mode="r+") if setup["path"] else None
    except Exception as error:
        answers.write(json.dumps({"fatal": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        return 1
    answers.write(json.dumps({"ready": os.getpid()}).encode() + b"\n")
    for line in requests:
        index, item = json.loads(line)
        try:
            array = prepare(item, transform, setup["max_pixels"])
            if array.shape != setup["shape"]:
                raise Unreadable(f"preprocessing failed: shape {array.shape}")
            if pixels is not None:
                pixels[index] = array
            reason = None
        except Unreadable as error:
            reason = error.reason
        answers.write(json.dumps({"index": index, "reason": reason}).encode() + b"\n")
    return 0


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
