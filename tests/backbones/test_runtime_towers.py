"""Exported towers in every runtime: equal to PyTorch, at other shapes than the traced one."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from tests.adapting import small

import crossadapt
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import exporting
from crossadapt.backbones.exporting import TOWERS, export
from crossadapt.backbones.onnx_runtime import ONNX, ONNX_INT8, behind_last_attention
from crossadapt.backbones.openvino import OPENVINO
from crossadapt.backbones.tokenizing import cut
from crossadapt.errors import UserError

TEXTS = ["a", "two green birds on a boat by the sea", "the door", "long " * 99, "a red kite"]
RUNTIMES = [OPENVINO, ONNX]

CASES = [
    ("siglip", None),
    ("open_clip", None),
    ("blip", None),
    ("clip", "cross-modal-adapter"),  # hooks
    ("clip", "full"),  # exchanged parameters
    ("clip", "peft:lora"),  # a tuned copy
    ("clip", "maple"),  # longer sequences
]


def adapted(family: str, method: str | None):
    """A tiny backbone with an adapter that is far from the frozen model."""
    backbone = small(family)
    if method is not None:
        torch.manual_seed(0)
        adapter = crossadapt.attach(backbone, make_config(method, {}))
        with torch.no_grad():
            for parameter in adapter.trained().values():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with both towers of a tiny CLIP."""
    folder = tmp_path_factory.mktemp("exported")
    for tower in TOWERS:
        export(small("clip"), tower, folder)
    return folder


@pytest.mark.parametrize(("family", "method"), CASES)
def test_features_equal_those_of_pytorch_at_any_shape(family, method, tmp_path) -> None:
    backbone = adapted(family, method)
    before = [(p.requires_grad, p.clone()) for p in backbone.parameters()]
    modes = [m.training for m in backbone.modules()]
    for tower in TOWERS:
        export(backbone, tower, tmp_path)
    for parameter, (trained, values) in zip(backbone.parameters(), before, strict=True):
        assert parameter.requires_grad == trained
        assert torch.equal(parameter, values)
    assert [m.training for m in backbone.modules()] == modes
    loaded = [runtime.load(tmp_path, "fp32", 1) for runtime in RUNTIMES]
    for count in (1, 5):
        pixels = torch.randn(count, 3, *backbone.preprocess.size)
        tokens = cut(backbone.tokenize(TEXTS[:count]))
        with torch.no_grad():
            image = backbone.encode_image(pixels).numpy()
            text = backbone.encode_text(tokens.ids, tokens.mask).numpy()
        for towers in loaded:
            np.testing.assert_allclose(towers("vision", (pixels,)), image, atol=1e-4)
            found = towers("text", (tokens.ids, tokens.mask))
            np.testing.assert_allclose(found, text, atol=1e-4)


def test_int8_is_near_but_not_the_same(exported, tmp_path) -> None:
    ONNX_INT8.derive(exported, tmp_path)
    plain, coarse = (ONNX.load(f, "fp32", 1) for f in (exported, tmp_path))
    pixels = torch.randn(5, 3, 32, 32)
    a, b = plain("vision", (pixels,)), coarse("vision", (pixels,))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert 0.99 < cosines.min() < 1 - 1e-6
    integers = [
        i for i in onnx.load(tmp_path / "vision.onnx").graph.initializer if i.data_type == 3
    ]
    # A layer of 6, and of the last one what is in front of its MLP.
    assert len([i for i in integers if len(i.dims) == 2]) == 10


def test_the_last_products_of_a_tower_stay_in_float32(exported) -> None:
    for tower, projection, layer in (("vision", "visual", 1), ("text", "text", 2)):
        graph = onnx.load(exported / f"{tower}.onnx").graph
        last = f"/{tower}_model/encoder/layers.{layer}/mlp"
        assert behind_last_attention(graph) == [
            f"{last}/fc1/MatMul", f"{last}/fc2/MatMul", f"/{projection}_projection/MatMul"
        ]  # fmt: skip
    graph.ClearField("node")
    assert behind_last_attention(graph) == []


_CHILD = """
import gc, os, signal, sys
from pathlib import Path
import torch
from crossadapt.backbones.openvino import OPENVINO
from crossadapt.training.stopping import StopSignals

one, other = (OPENVINO.load(Path(sys.argv[1]), "fp32", 1) for _ in range(2))
one("vision", (torch.zeros(1, 3, 32, 32),))
del one
gc.collect()
del other
gc.collect()
with StopSignals() as stop:
    os.kill(os.getpid(), int(sys.argv[2]))
    print("asked" if stop.raised(1, torch.device("cpu")) else "not asked")
"""


def test_a_signal_still_asks_to_stop_after_openvino_was_used(exported) -> None:
    """Handlers run on a stack of their own where `faulthandler` is on; the plugin exchanges it."""
    command = [sys.executable, "-X", "faulthandler", "-c", _CHILD, str(exported)]
    done = subprocess.run([*command, str(int(signal.SIGTERM))], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "asked"), done.stderr[-500:]


@pytest.mark.parametrize("runtime", [*RUNTIMES, ONNX_INT8], ids=lambda runtime: runtime.name)
def test_handlers_are_what_they_were(runtime, exported, tmp_path) -> None:
    """Python's view and the kernel's: which signals are caught and which ignored."""

    def state():
        with open("/proc/self/status") as file:
            masks = [line for line in file if line.startswith(("SigCgt", "SigIgn", "SigBlk"))]
        return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], masks

    before = state()
    folder = exported
    if runtime.own_files:
        folder = tmp_path
        runtime.derive(exported, folder)
    runtime.load(folder, "fp32", 1)("vision", (torch.zeros(1, 3, 32, 32),))
    assert state() == before


def test_nothing_is_reported_to_anybody(exported, monkeypatch) -> None:
    telemetry = pytest.importorskip("openvino_telemetry")

    def refuse(*_args, **_kwargs):
        raise AssertionError("telemetry was used")

    for name in ("__init__", "send_event", "start_session"):
        monkeypatch.setattr(telemetry.Telemetry, name, refuse)
    OPENVINO.load(exported, "fp32", 1)


def test_a_tower_that_cannot_be_traced_is_named(tmp_path, monkeypatch, capfd) -> None:
    backbone = small("clip")
    monkeypatch.setattr(
        backbone, "encode_image", lambda pixels: torch.linalg.eigvals(pixels).real.mean((1, 3))
    )
    with pytest.raises(UserError, match=r"vision tower of tiny:clip .* cannot be exp") as caught:
        export(backbone, "vision", tmp_path)
    assert "runtime torch" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_package_that_exports_is_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="package onnx") as caught:
        export(small("clip"), "vision", tmp_path)
    assert "crossadapt[onnx]" in str(caught.value)


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_graph_that_fails_at_a_shape_says_so(runtime, exported, tmp_path, monkeypatch) -> None:
    backbone = small("clip")  # a batch of two for ever
    monkeypatch.setattr(backbone, "encode_image", lambda pixels: pixels.mean((2, 3))[:2])
    export(backbone, "vision", tmp_path)
    (tmp_path / "text.onnx").write_bytes((exported / "text.onnx").read_bytes())
    towers = runtime.load(tmp_path, "fp32", 1)
    with pytest.raises(UserError, match=r"vision tower fails at inputs of shape \(3, 3, 32, 32\)"):
        towers("vision", (torch.zeros(3, 3, 32, 32),))
    monkeypatch.setattr(towers, "run", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"\(3, 3, 32, 32\): division by zero"):
        towers("vision", (torch.zeros(3, 3, 32, 32),))
