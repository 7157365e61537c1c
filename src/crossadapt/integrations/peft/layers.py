"""How crossadapt insertions sit inside PEFT: a wrapper around each site, one owner per tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from crossadapt.errors import UserError

PREFIX = "crossadapt_"


class CrossAdaptLayer(nn.Module, BaseTunerLayer):
    """A frozen site module and, by adapter name, the insertions applied to its output.

    All trained tensors belong to such layers and none to the tuner, so the adapted model is
    complete without the tuner object (`transformers` drops it).
    """

    adapter_layer_names = ("crossadapt_insertion",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.crossadapt_insertion = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.parallel_adapters: set[str] = set()
        self.train(base_layer.training)

    def add_insertion(self, adapter_name: str, module: nn.Module, parallel: bool = False) -> None:
        """Keep `module`, a map (..., width) -> (..., width), under `adapter_name`.

        A `parallel` one maps the site's input to what is added to its output.
        """
        self.crossadapt_insertion[adapter_name] = module.train(self.training)
        (self.parallel_adapters.add if parallel else self.parallel_adapters.discard)(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The site's output, changed by the active adapters in order; its other outputs as is."""
        output = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return output
        active = [name for name in self.active_adapters if name in self.crossadapt_insertion]
        if not active:
            return output
        hidden, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        for name in active:
            module = self.crossadapt_insertion[name]
            parallel = name in self.parallel_adapters
            hidden = hidden + module(args[0]) if parallel else module(hidden)
        return hidden if rest is None else (hidden, *rest)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT would look for a `weight`, which a site need not have, and take over its dtype.
        module = self.crossadapt_insertion[adapter_name]
        if not any(tensor.is_meta for tensor in module.parameters()):
            module.to(device or next(self.base_layer.parameters()).device)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: a non-linear insertion has no equivalent weight."""
        raise _not_mergeable()

    def unmerge(self) -> None:
        """Refused: nothing can have been merged."""
        raise _not_mergeable()


class Borrowed(nn.Module):
    """Runs a module that another layer owns: same tensors, but not registered here."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.__dict__["owner"] = owner

    def forward(self, x: Tensor) -> Tensor:
        """What the owner's module gives."""
        return self.__dict__["owner"](x)


def give_one_owner(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The same modules, in which every shared submodule is registered in the first user only.

    The others refer to the same object without registering it. PEFT and `transformers` save and
    load by registered name, so the shared tensors are saved once and come back as one object.

    Raises:
        UserError: a bare parameter is shared by two modules, which reloading would untie.
    """
    owned: set[int] = set()
    result: list[nn.Module] = []
    for module in modules:
        if id(module) in owned:
            result.append(Borrowed(module))
        else:
            _claim(module, owned)
            result.append(module)
    return result


def _claim(module: nn.Module, owned: set[int]) -> None:
    """Add a module's parts to `owned`, taking out registrations of parts that already are."""
    owned.add(id(module))
    tensors = {id(tensor) for tensor in module._parameters.values() if tensor is not None}
    if tensors & owned:
        raise UserError(
            "two modules share a bare parameter, which PEFT cannot save and load",
            where=type(module).__name__,
            fix="share the module that holds the parameter, for example an nn.Linear",
        )
    owned |= tensors
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        if id(child) not in owned:
            _claim(child, owned)
        elif isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            module._modules[name] = Borrowed(child)
        else:
            # An ordinary attribute: found by name, invisible to state dicts.
            del module._modules[name]
            module.__dict__[name] = child


def _not_mergeable() -> UserError:
    return UserError(
        "a crossadapt insertion cannot be merged into the backbone",
        where="merge, unmerge or merge_and_unload",
        fix="keep the adapter attached; `disable_adapter()` and `unload()` give the frozen model",
    )
