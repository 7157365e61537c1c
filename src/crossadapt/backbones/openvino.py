"""OpenVINO as a runtime of exported towers, on CPUs.

It reads the ONNX files itself; `openvino.convert_model` reports every use to a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from crossadapt.backbones.exporting import TOWERS, EncodedTower
from crossadapt.backbones.runtime import Runtime, Towers

_HINTS = {"fp32": "f32", "bf16": "bf16"}


@cache
def core() -> Any:
    """The one `openvino.Core` of the process, which is never closed.

    Its CPU plugin exchanges the stack on which the calling thread runs signal handlers (it wants
    room for AMX registers) and, when it is closed, puts back what it found, unless somebody else
    has exchanged it since. With two cores that ends badly: closed in the order in which they were
    opened, the second puts back the first one's stack, which is no longer mapped. Python's
    handlers run on this stack, so the next SIGINT or SIGTERM kills the process (SIGSEGV).
    """
    import openvino

    return openvino.Core()


class OpenVINO(Runtime):
    """The runtime ``openvino``."""

    package: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"

    def load(self, folder: Path, precision: str, threads: int) -> Towers:
        """See `Runtime.load`."""
        return OpenVINOTowers(folder, precision, threads)


class OpenVINOTowers(Towers):
    """See `Towers`; products in the precision asked for."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, by all threads
            "INFERENCE_NUM_THREADS": threads,
        }
        self._towers = {
            tower: core().compile_model(folder / f"{tower}.onnx", "CPU", options)
            for tower in TOWERS
        }

    def run(self, tower: EncodedTower, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Towers.run`."""
        compiled = self._towers[tower]
        # A port has names of inner nodes, too, which optimisation has merged with it.
        named = [next(iter(port.names & inputs.keys())) for port in compiled.inputs]
        return compiled([inputs[name] for name in named])[0]


OPENVINO = OpenVINO("openvino", "OpenVINO")
