"""ONNX Runtime as a runtime of exported towers, on CPUs: in float32, or in int8."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from crossadapt.backbones.exporting import TOWERS, EncodedTower
from crossadapt.backbones.runtime import Runtime, Towers

_PRODUCTS = ("MatMul", "Gemm")
_FATAL = 4
"""Severity of what its log prints: errors come as exceptions, too."""


@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """The runtimes ``onnx`` and ``onnx-int8``."""

    package: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnx"
    int8: bool = False

    @property
    def own_files(self) -> bool:
        """Weights of int8 are files of their own."""
        return self.int8

    def derive(self, exported: Path, folder: Path) -> None:
        """Quantise: weights of matrix products to int8, one scale for each of their columns.

        What they are multiplied with is quantised batch by batch while it runs ("dynamic"), so
        nothing has to be calibrated. Convolutions, such as the patch embedding, stay in float32.
        Weights use 7 of their 8 bits: processors without VNNI add two products in 16 bits, which
        overflows otherwise (the texts of a tiny CLIP fell to a cosine of 0.58). The last products
        stay in float32: most are of the pooled token only, so they cost nothing, and their errors
        would reach the features unmixed.
        """
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        for tower in TOWERS:
            graph = onnx.load(exported / f"{tower}.onnx", load_external_data=False).graph
            with _without_advice():
                quantize_dynamic(
                    exported / f"{tower}.onnx",
                    folder / f"{tower}.onnx",
                    nodes_to_exclude=behind_last_attention(graph),
                    op_types_to_quantize=list(_PRODUCTS),
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                    reduce_range=True,
                )

    def load(self, folder: Path, precision: str, threads: int) -> Towers:
        """See `Runtime.load`."""
        return OnnxTowers(folder, precision, threads)


class OnnxTowers(Towers):
    """See `Towers`; products in float32, or int8 where the files are, at every precision."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        del precision
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL
        self._towers = {
            tower: onnxruntime.InferenceSession(
                folder / f"{tower}.onnx", options, providers=["CPUExecutionProvider"]
            )
            for tower in TOWERS
        }

    def run(self, tower: EncodedTower, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Towers.run`."""
        session = self._towers[tower]
        named = {port.name: inputs[port.name] for port in session.get_inputs()}
        return np.asarray(session.run(None, named)[0])


def behind_last_attention(graph: Any) -> list[str]:
    """Names of the products with weights behind the output projection of the last attention.

    An attention ends with a product of two computed tensors, its weights and the values.

    Args:
        graph: an ``onnx.GraphProto``, its nodes in the order in which they run.
    """
    stored = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in _PRODUCTS]
    computed = [stored.isdisjoint(node.input) for node in products]
    if True not in computed:
        return []
    behind = len(computed) - computed[::-1].index(True)
    return [node.name for node in products[behind + 1 :]]


@contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser advises a preparation (shape inference) that dynamic quantisation of matrix
    products does not need, on the root logger."""
    root = logging.getLogger()
    before = root.level
    try:
        root.setLevel(logging.ERROR)
        yield
    finally:
        root.setLevel(before)


ONNX = OnnxRuntime("onnx", "ONNX Runtime")
ONNX_INT8 = OnnxRuntime("onnx-int8", "ONNX Runtime in int8", int8=True)
