"""OpenVINO as the runtime of a backbone's towers, with whatever adapter is active inside.

A tower is traced as it runs: hooks, exchanged parameters and tuned copies become part of the graph.
The number of rows and, for texts, the number of tokens stay free. A trace cannot follow Python:
what a method decides from its inputs would be decided once. So nothing here is to be trusted before
its vectors have been compared, see `crossadapt.search.runtime_gate`.

The graph is read by OpenVINO's PyTorch front end itself, because `openvino.convert_model` reports
every use to a server.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from crossadapt.backbones.tokenizing import cut
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.hf import HFBackbone

EncodedTower = Literal["vision", "text"]
TOWERS: tuple[EncodedTower, ...] = ("vision", "text")
_EXAMPLES = ["a red door on a wall", "a dog"]
"""Of unequal length, so that the trace sees padding."""
_HINTS = {"fp32": "f32", "bf16": "bf16"}


def installed() -> bool:
    """Whether OpenVINO can be imported; it is not imported for that."""
    return importlib.util.find_spec("openvino") is not None


def require() -> Any:
    """The module `openvino`.

    Raises:
        UserError: it is not installed.
    """
    if not installed():
        raise UserError(
            "the runtime openvino is not installed",
            where="runtime",
            fix="pip install 'crossadapt[openvino]', or use the runtime torch",
        )
    import openvino

    return openvino


def version() -> str:
    """Of the installed OpenVINO."""
    return importlib.metadata.version("openvino")


class _Tower(nn.Module):
    """One encode function as a module, for the tracer."""

    def __init__(self, backbone: HFBackbone, tower: EncodedTower) -> None:
        super().__init__()
        self.backbone, self.tower = backbone, tower

    def forward(self, first: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, D) of pixels, or of ids and mask."""
        if self.tower == "vision":
            return self.backbone.encode_image(first).float()
        return self.backbone.encode_text(first, mask).float()


def export(backbone: HFBackbone, tower: EncodedTower, path: Path) -> None:
    """Write one tower as ``path`` (.xml) and, beside it, its weights (.bin), in float32.

    Args:
        backbone: on the CPU, with the adapter that shall be inside active.
        tower: ``vision``: normalised pixels (B, 3, H, W) to features (B, D); ``text``: ids int64
            and mask bool, both (B, L), to features (B, D).
        path: ends in ``.xml``.

    Raises:
        UserError: OpenVINO is missing, or cannot trace this model with this adapter.
    """
    ov = require()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    inputs, shapes, types = _examples(backbone, tower, ov)
    try:
        with _quiet(), _constant(backbone), torch.no_grad():
            front = FrontEndManager().load_by_framework("pytorch")
            traced = TorchScriptPythonDecoder(_Tower(backbone, tower), example_input=inputs)
            loaded = front.load(traced)
            for place, shape, kind in zip(loaded.get_inputs(), shapes, types, strict=True):
                loaded.set_partial_shape(place, shape)
                loaded.set_element_type(place, kind)
            graph = front.convert(loaded)
            ov.save_model(graph, path, compress_to_fp16=False)
    except OSError:
        raise  # a full disk is no fault of the model
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "Exception" not in line), type(error).__name__)
        raise UserError(
            f"OpenVINO cannot take the {tower} tower of {backbone.source} "
            f"({backbone.family}): {reason[:200]}",
            where="runtime openvino",
            fix="use the runtime torch",
        ) from error


class CompiledTowers:
    """Both towers, ready to run on this machine's processor.

    Args:
        folder: holds ``vision.xml`` and ``text.xml`` with their weights.
        precision: ``fp32`` or ``bf16``, the format of the products.

    Raises:
        RuntimeError: OpenVINO cannot read a file.
        UserError: OpenVINO is missing.
    """

    def __init__(self, folder: Path, precision: str) -> None:
        ov = require()
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, by all threads
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        core = ov.Core()
        self._towers = {
            tower: core.compile_model(folder / f"{tower}.xml", "CPU", options) for tower in TOWERS
        }

    def __call__(self, tower: EncodedTower, inputs: Sequence[Tensor]) -> np.ndarray:
        """Un-normalised features, float32 (B, D), of what `export` lists as the tower's inputs.

        Raises:
            UserError: the graph cannot take the inputs' shape, which the trace has made constant.
        """
        reason = ""
        try:
            features = self._towers[tower]([x.cpu().numpy() for x in inputs])[0]
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
        else:
            if len(features) == len(inputs[0]):
                return features
            reason = f"{len(features)} rows came out"
        raise UserError(
            f"the exported {tower} tower fails at inputs of shape {tuple(inputs[0].shape)}: "
            f"{reason}",
            where="runtime openvino",
            fix="use the runtime torch",
        )


def processor() -> str:
    """The processor OpenVINO runs on, by its maker's name."""
    return str(require().Core().get_property("CPU", "FULL_DEVICE_NAME"))


def _examples(backbone: HFBackbone, tower: EncodedTower, ov: Any) -> tuple[Any, list, list]:
    """What to trace with, and shape and type of each input, -1 where a size is free."""
    if tower == "vision":
        height, width = backbone.preprocess.size
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(2, 3, height, width, generator=generator)
        return (pixels,), [ov.PartialShape([-1, 3, height, width])], [ov.Type.f32]
    tokens = cut(backbone.tokenize(_EXAMPLES))
    free = ov.PartialShape([-1, -1])
    return (tokens.ids, tokens.mask), [free, free], [ov.Type.i64, ov.Type.boolean]


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of itself and of every Python branch; vectors are compared instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _constant(backbone: HFBackbone) -> Iterator[None]:
    """Trained tensors lose their gradient meanwhile: a traced constant may not have one."""
    trained = [p for p in backbone.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
