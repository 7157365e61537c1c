"""The towers of a backbone as ONNX files, with whatever adapter is active inside.

The one description that every runtime beside PyTorch reads. A tower is traced as it runs: hooks,
exchanged parameters and tuned copies become part of the graph. The number of rows and, for texts,
the number of tokens stay free. A trace cannot follow Python: what a method decides from its inputs
would be decided once. So nothing here is to be trusted before its vectors have been compared, see
`crossadapt.search.runtime_gate`.

PyTorch's exporter by tracing is used, not its newer one by `torch.export`: for the smallest CLIP
that one took 30 s a tower where tracing takes one, and the files run equally well.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossadapt.backbones.tokenizing import cut
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.hf import HFBackbone

EncodedTower = Literal["vision", "text"]
TOWERS: tuple[EncodedTower, ...] = ("vision", "text")
INPUTS: dict[EncodedTower, tuple[str, ...]] = {"vision": ("pixels",), "text": ("ids", "mask")}
"""Names of a tower's inputs; one that does not matter to the features is left out of the graph."""
PACKAGE = "onnx"
"""What the export needs beside PyTorch."""
_EXAMPLES = ["a red door on a wall", "a dog"]
"""Of unequal length, so that the trace sees padding."""
_OPSET = 17


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


def export(backbone: HFBackbone, tower: EncodedTower, folder: Path) -> None:
    """Write one tower as ``vision.onnx`` or ``text.onnx`` into a folder, in float32.

    Args:
        backbone: on the CPU, with the adapter that shall be inside active, in evaluation mode.
        tower: ``vision``: normalised pixels (B, 3, H, W) to features (B, D); ``text``: ids int64
            and mask bool, both (B, L), to features (B, D).
        folder: exists.

    Raises:
        UserError: the package onnx is missing, or this model with this adapter cannot be traced.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            "the package onnx, which exports models, is not installed",
            where="runtime",
            fix="pip install 'crossadapt[onnx]', or use the runtime torch",
        )
    free = {0: "rows"} if tower == "vision" else {0: "rows", 1: "tokens"}
    try:
        with _quiet(), _constant(backbone), _plain_attention(), torch.no_grad():
            torch.onnx.export(
                _Tower(backbone, tower),
                _examples(backbone, tower),
                folder / f"{tower}.onnx",
                input_names=list(INPUTS[tower]),
                output_names=["features"],
                dynamic_axes=dict.fromkeys(INPUTS[tower], free),
                opset_version=_OPSET,
                # Anything else would set the mode of the adapters, and leave it set.
                training=torch.onnx.TrainingMode.PRESERVE,
                dynamo=False,
            )
    except OSError:
        raise  # a full disk is no fault of the model
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"the {tower} tower of {backbone.source} ({backbone.family}) cannot be exported: "
            f"{reason[:200]}",
            where="runtime",
            fix="use the runtime torch",
        ) from error


def _examples(backbone: HFBackbone, tower: EncodedTower) -> tuple[Tensor, ...]:
    """What to trace with."""
    if tower == "vision":
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(2, 3, *backbone.preprocess.size, generator=generator),)
    tokens = cut(backbone.tokenize(_EXAMPLES))
    return tokens.ids, tokens.mask


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


@contextmanager
def _plain_attention() -> Iterator[None]:
    """`nn.MultiheadAttention` (open_clip) by ordinary operators while a tower is traced.

    Its fused form is unknown to ONNX, and of its other form the exporter makes a graph for texts of
    one length.
    """
    usual: Callable[..., Any] = nn.MultiheadAttention.forward

    def forward(self: Any, query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Any:
        mask = rest.get("attn_mask")
        simple = self._qkv_same_embed_dim and self.batch_first and self.bias_k is None
        simple = simple and rest.get("key_padding_mask") is None and not rest.get("need_weights")
        additive = mask is None or (mask.dim() == 2 and mask.is_floating_point())
        if not (simple and additive) or self.add_zero_attn:
            return usual(self, query, key, value, **rest)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        parts = []
        for x, weight, bias in zip(
            (query, key, value), self.in_proj_weight.chunk(3), biases, strict=True
        ):
            rows = functional.linear(x, weight, bias)
            shape = (x.shape[0], x.shape[1], self.num_heads, self.head_dim)
            parts.append(rows.reshape(shape).transpose(1, 2))
        mixed = functional.scaled_dot_product_attention(*parts, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None

    kind: Any = nn.MultiheadAttention
    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = usual
