"""`AttachedAdapter`: one method's trained tensors on a backbone, and how they take effect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossadapt.adapters.plan import Insertion, Override, Plan, Shadow

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from crossadapt.backbones.base import Backbone


class SiteHook:
    """A forward hook that replaces a site's output by the module's, at the adapter's strength.

    An object rather than a closure, so that a deep copy of the backbone copies it too.
    """

    def __init__(self, adapter: AttachedAdapter, module: nn.Module) -> None:
        self.adapter, self.module = adapter, module

    def __call__(self, site: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Tensor outputs are replaced; of a tuple, the first element is."""
        if self.adapter.strength == 0.0:
            return output
        if isinstance(output, tuple):
            return (self.blend(output[0]), *output[1:])
        return self.blend(output)

    def blend(self, x: Tensor) -> Tensor:
        """``x + s (module(x) - x)``; at strength 1 the module's own output."""
        y = self.module(x)
        strength = self.adapter.strength
        return (y if strength == 1.0 else x + strength * (y - x)).to(x.dtype)


class AttachedAdapter(nn.Module):
    """One named adapter on a backbone; lives at ``backbone.adapters[name]``.

    Made by `crossadapt.adapters.attach`. Its parameters are float32 and the only trainable ones
    of the backbone.

    Attributes:
        name: the key in ``backbone.adapters``.
        method: the method's registered name.
        config: the method's config instance.
        seed: what the initial values were drawn with.
        strength: 0 (frozen model) to 1 (as trained); change it with `set_strength`.
        active: whether the backbone's encode functions use this adapter now; change it with
            `activate`.
    """

    def __init__(
        self, backbone: Backbone, plan: Plan, *, name: str, method: str, config: Any, seed: int
    ) -> None:
        super().__init__()
        self.name, self.method, self.config, self.seed = name, method, config, seed
        self.strength = 1.0
        self.active = False
        self.insertions = nn.ModuleDict()
        self.copies = nn.ParameterDict()
        self.tuned = nn.ParameterDict()
        # What belongs to the backbone is kept out of the module tree: a plain dict of frozen
        # parameters, and the shadow (whose modules hold the backbone's parameters) in a tuple,
        # with those of its modules that are new in a list.
        self._originals: dict[str, nn.Parameter] = {}
        self._shadow: tuple[Shadow, nn.Module] | None = None
        self._tuners: list[nn.Module] = []
        self._sites: list[tuple[str, str]] = []
        self._handles: list[RemovableHandle] = []
        self._names: dict[str, nn.Parameter] = {}
        originals = dict(backbone.model.named_parameters())
        device = next(iter(originals.values())).device
        for item in plan:
            if isinstance(item, Insertion):
                self._insert(item, device)
            elif isinstance(item, Override):
                self._copy(item.parameter, originals[item.parameter])
            else:
                self._tune(item, backbone.model)

    def _insert(self, item: Insertion, device: torch.device) -> None:
        site = item.site
        module = item.module.to(device=device, dtype=torch.float32)
        self.insertions[site.name.replace(".", "_")] = module
        self._sites.append((site.name, site.path))
        self._remember((f"{site.name}.{n}", p) for n, p in module.named_parameters())

    def _copy(self, parameter: str, original: nn.Parameter) -> None:
        copy = nn.Parameter(original.detach().to(torch.float32, copy=True))
        self.copies[parameter.replace(".", "/")] = copy
        self._originals[parameter] = original
        self._remember([(parameter, copy)])

    def _tune(self, item: Shadow, model: nn.Module) -> None:
        tuned = item.build(model)
        self._shadow = (item, tuned)
        kinds = {name: type(module) for name, module in model.named_modules()}
        self._tuners = [m for n, m in tuned.named_modules() if type(m) is not kinds.get(n)]
        for name, parameter in item.trained(tuned).items():
            parameter.data = parameter.data.float()
            self.tuned[name.replace(".", "/")] = parameter
            self._remember([(name, parameter)])

    def _remember(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        known = {id(p) for p in self._names.values()}
        for name, parameter in named:
            if parameter.requires_grad and id(parameter) not in known:
                self._names[name] = parameter
                known.add(id(parameter))

    def named_trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trained parameters by their file names, in plan order; a shared one comes once.

        Names read ``vision.0.attention.down.weight`` for insertions (a shared parameter goes by
        the first site that holds it), the backbone's own dotted name for trained copies, and the
        tuner's name for PEFT methods.
        """
        yield from self._names.items()

    def trained(self) -> dict[str, nn.Parameter]:
        """`named_trained` as a dict."""
        return dict(self._names)

    def count(self) -> int:
        """Number of trained values; shared ones count once."""
        return sum(p.numel() for p in self._names.values())

    @property
    def is_pure_override(self) -> bool:
        """Whether the adapter consists of trained copies alone, and so can be merged."""
        return bool(self._originals) and not self._sites and self._shadow is None

    def overrides(self) -> Mapping[str, Tensor]:
        """Tensors to use instead of backbone parameters now: ``W0 + s (W1 - W0)``, W0's dtype."""
        if self.strength == 0.0:
            return {}
        return {
            name: self._interpolated(name, original).to(original.dtype)
            for name, original in self._originals.items()
        }

    def _interpolated(self, name: str, original: Tensor) -> Tensor:
        trained = self.copies[name.replace(".", "/")]
        if self.strength == 1.0:
            return trained
        start = original.detach().float()
        return start + self.strength * (trained - start)

    def bind(self, backbone: Backbone) -> None:
        """Take effect on `backbone`; the engine makes sure that no other adapter is active."""
        modules = dict(backbone.model.named_modules())
        for name, path in self._sites:
            hook = SiteHook(self, self.insertions[name.replace(".", "_")])
            self._handles.append(modules[path].register_forward_hook(hook))
        self.active = True
        self.refresh(backbone)

    def refresh(self, backbone: Backbone) -> None:
        """Hand overrides and shadow to the backbone as the present strength asks."""
        backbone.override_source = self.overrides if self._originals else None
        backbone.shadow = None
        if self._shadow is not None and self.strength > 0.0:
            item, tuned = self._shadow
            item.set_strength(tuned, self.strength)
            backbone.shadow = tuned

    def unbind(self, backbone: Backbone) -> None:
        """Cease to take effect; leaves no hook behind."""
        while self._handles:
            self._handles.pop().remove()
        backbone.override_source = None
        backbone.shadow = None
        self.active = False

    def train(self, mode: bool = True) -> AttachedAdapter:
        """Set the mode of everything the adapter brought along; the frozen model keeps its own."""
        super().train(mode)
        for module in self._tuners:
            module.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AttachedAdapter:
        # The shadow is outside the module tree, so follow moves to other devices by hand. Tensors
        # it shares with the backbone are moved already; a second move does nothing.
        super()._apply(fn, recurse)
        for module in self._shadow[1].modules() if self._shadow is not None else ():
            for parameter in module.parameters(recurse=False):
                parameter.data = fn(parameter.data)
            for key, buffer in module.named_buffers(recurse=False):
                module._buffers[key] = fn(buffer)
        return self

    def extra_repr(self) -> str:
        """Name, method, size and strength for ``print(backbone)``."""
        return f"{self.name!r}, {self.method}, {self.count()} trained, strength {self.strength}"
