"""A second module tree over the same weights, in which PEFT may replace layers as it likes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from torch import Tensor, nn

ADAPTER = "default"
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# transformers notes on a model that its output-capturing hooks are in place; the copy has none.
_CAPTURE_FLAG = "_output_capturing_hooks_installed"


class Dial:
    """A tuner layer's forward with a strength: base + strength * (tuned - base).

    At strength 1 the layer's own forward runs and nothing else.
    """

    def __init__(self, base: nn.Module, tuned: Callable[..., Tensor]) -> None:
        self.base, self.tuned = base, tuned
        self.strength = 1.0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output (..., out)."""
        if self.strength == 1.0:
            return self.tuned(*args, **kwargs)
        base = self.base(*args, **kwargs)
        if self.strength == 0.0:
            return base
        return base + self.strength * (self.tuned(*args, **kwargs) - base)


def structural_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree over the same `Parameter`, buffer and config objects, no hooks.

    Modules share their tensor tables with the original, so moving or swapping a tensor of one is
    seen by the other; adding or replacing a *module* in the copy leaves the original as it was.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        shared = (module._parameters, module._buffers, module.__dict__.get("config"))
        memo.update((id(thing), thing) for thing in shared if thing is not None)
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        for hooks in _HOOKS:
            getattr(module, hooks).clear()
        module.__dict__.pop(_CAPTURE_FLAG, None)
    return twin


def tuned(shadow: nn.Module, config: PeftConfig) -> nn.Module:
    """`shadow`, a `structural_copy`, with `config`'s tuner in its layers."""
    # The tuner itself: `inject_adapter_in_model` refuses tuners with state of their own (VeRA),
    # and `get_peft_model` wraps the model and trips over a deprecation in transformers 5.23.
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(config.peft_type)]
    tuner(shadow, {ADAPTER: config}, ADAPTER)
    # Trained tensors are float32 on any backbone, and VeRA's fixed ones must be what they are.
    cast_adapter_dtype(shadow, ADAPTER)
    for _, layer in tuner_layers(shadow):
        layer.__dict__["forward"] = Dial(layer.get_submodule("base_layer"), layer.forward)
    return shadow


def tuner_layers(shadow: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that PEFT put into the shadow, with their dotted names."""
    for name, module in shadow.named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module, nn.Module):
            yield name, module


def trained_tensors(shadow: nn.Module) -> Mapping[str, nn.Parameter]:
    """The trained parameters by PEFT's own names less the adapter name.

    For example ``vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight``.
    """
    found: dict[str, nn.Parameter] = {}
    for prefix, layer in tuner_layers(shadow):
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad and not name.startswith("base_layer."):
                stem = ".".join(part for part in name.split(".") if part != ADAPTER)
                found[f"{prefix}.{stem}"] = parameter
    return found


def set_shadow_strength(shadow: nn.Module, strength: float) -> None:
    """Set every tuner layer's strength, in [0, 1]."""
    for _, layer in tuner_layers(shadow):
        layer.__dict__["forward"].strength = strength
