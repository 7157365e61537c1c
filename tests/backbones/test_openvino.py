"""Towers in OpenVINO: equal to PyTorch in every family, at other shapes than the traced one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.adapting import small

import crossadapt
from crossadapt.adapters.registry import make_config
from crossadapt.backbones.openvino import TOWERS, CompiledTowers, export
from crossadapt.backbones.tokenizing import cut
from crossadapt.errors import UserError

TEXTS = ["a", "two green birds on a boat by the sea", "the door", "long " * 99, "a red kite"]

CASES = [
    ("clip", None),
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


@pytest.mark.parametrize(("family", "method"), CASES)
def test_features_equal_those_of_pytorch_at_any_shape(family, method, tmp_path) -> None:
    backbone = adapted(family, method)
    trainable = [p.requires_grad for p in backbone.parameters()]
    for tower in TOWERS:
        export(backbone, tower, tmp_path / f"{tower}.xml")
    assert [p.requires_grad for p in backbone.parameters()] == trainable
    compiled = CompiledTowers(tmp_path, "fp32")
    for count in (1, 5):
        pixels = torch.randn(count, 3, *backbone.preprocess.size)
        tokens = cut(backbone.tokenize(TEXTS[:count]))
        with torch.no_grad():
            image = backbone.encode_image(pixels).numpy()
            text = backbone.encode_text(tokens.ids, tokens.mask).numpy()
        np.testing.assert_allclose(compiled("vision", (pixels,)), image, atol=1e-4)
        np.testing.assert_allclose(compiled("text", (tokens.ids, tokens.mask)), text, atol=1e-4)


def test_nothing_is_reported_to_anybody(tmp_path, monkeypatch) -> None:
    telemetry = pytest.importorskip("openvino_telemetry")

    def refuse(*_args, **_kwargs):
        raise AssertionError("telemetry was used")

    for name in ("__init__", "send_event", "start_session"):
        monkeypatch.setattr(telemetry.Telemetry, name, refuse)
    export(small("clip"), "vision", tmp_path / "vision.xml")
    assert (tmp_path / "vision.bin").stat().st_size > 1000


def test_a_tower_that_cannot_be_traced_is_named(tmp_path, monkeypatch) -> None:
    backbone = small("clip")
    monkeypatch.setattr(
        backbone, "encode_image", lambda pixels: torch.linalg.eigvals(pixels).real.mean((1, 3))
    )
    with pytest.raises(UserError, match="cannot take the vision tower of tiny:clip") as caught:
        export(backbone, "vision", tmp_path / "vision.xml")
    assert "runtime torch" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_fails_at_a_shape_says_so(tmp_path, monkeypatch) -> None:
    backbone = small("clip")
    for tower in TOWERS:
        if tower == "vision":  # a batch of two for ever
            monkeypatch.setattr(
                backbone, "encode_image", lambda pixels: pixels[: len(pixels)].mean((2, 3))[:2]
            )
        export(backbone, tower, tmp_path / f"{tower}.xml")
    compiled = CompiledTowers(tmp_path, "fp32")
    with pytest.raises(UserError, match=r"vision tower fails at inputs of shape \(3, 3, 32, 32\)"):
        compiled("vision", (torch.zeros(3, 3, 32, 32),))
