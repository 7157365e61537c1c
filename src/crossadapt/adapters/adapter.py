"""`AttachedAdapter`: one method's trained tensors on a backbone, and how they take effect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossadapt.adapters.dial import dialled
from crossadapt.adapters.inside import bind_inside
from crossadapt.adapters.joining import Joining
from crossadapt.adapters.plan import (
    Companion,
    Heads,
    Insertion,
    Join,
    Override,
    Plan,
    Prompts,
    Shadow,
    Stream,
)
from crossadapt.adapters.prompting import Prompting, prompt_hooks
from crossadapt.adapters.tap import Tap
from crossadapt.backbones.fused import FusedBackbone
from crossadapt.layers.fusion import is_fusing

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from crossadapt.backbones.base import Backbone, Site


class SiteHook:
    """A forward hook that replaces a site's output by the module's, at the adapter's strength.

    Where the text and the fusion tower are the same layers, a hook of the fusion tower rests while
    texts are encoded alone. An object rather than a closure, so that a deep copy of the backbone
    copies it too.
    """

    def __init__(
        self, adapter: AttachedAdapter, module: nn.Module, site: Site, parallel: bool = False
    ) -> None:
        self.adapter, self.module, self.parallel = adapter, module, parallel
        self.fusion = site.tower == "fusion"
        self.tap = Tap(site) if parallel and site.source else None

    def __call__(self, site: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Tensor outputs are replaced; of a tuple, the first element is."""
        if self.rests:
            return output
        inputs = self.read(inputs)
        if isinstance(output, tuple):
            return (self.blend(output[0], inputs), *output[1:])
        return self.blend(output, inputs)

    @property
    def by_token(self) -> bool:
        """Whether every token is treated by itself; see `crossadapt.backbones.pooled_token`."""
        return self.rests or bool(getattr(self.module, "by_token", False))

    @property
    def rests(self) -> bool:
        """Whether the site's output stays as it is, here and now."""
        return dialled(self.adapter) == 0.0 or (self.fusion and not is_fusing())

    def read(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a parallel module works on, first: the site's own inputs, or what the tap kept."""
        return inputs if self.tap is None else (self.tap.take(),)

    def blend(self, x: Tensor, inputs: tuple[Any, ...] = ()) -> Tensor:
        """``x + s (module(x) - x)``, in parallel ``x + s module(input)``; at strength 1 s is 1."""
        strength = dialled(self.adapter)
        if self.parallel:
            y = self.module(inputs[0])
            return (x + (y if strength == 1.0 else strength * y)).to(x.dtype)
        y = self.module(x)
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
        lr_scales: trained names whose learning rate is not the run's, and its factor.
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
        self.inside = nn.ModuleDict()
        self.prompts = nn.ModuleDict()
        self.companion: nn.Module | None = None
        self.join: nn.Module | None = None
        self.copies = nn.ParameterDict()
        self.tuned = nn.ParameterDict()
        # What belongs to the backbone is kept out of the module tree: a plain dict of frozen
        # parameters, and the shadow (whose modules hold the backbone's parameters) in a tuple,
        # with those of its modules that are new in a list.
        self._originals: dict[str, nn.Parameter] = {}
        self.lr_scales: dict[str, float] = {}
        self._shadow: tuple[Shadow, nn.Module] | None = None
        self._tuners: list[nn.Module] = []
        self._sites: list[Site] = []
        self._parallel: set[str] = set()
        self._inside: list[Heads | Stream] = []
        self._prompts: list[Prompts] = []
        self._handles: list[RemovableHandle] = []
        self._names: dict[str, nn.Parameter] = {}
        originals = dict(backbone.model.named_parameters())
        device = next(iter(originals.values())).device
        for item in plan:
            if isinstance(item, Insertion):
                self._insert(item, device)
            elif isinstance(item, Heads | Stream):
                self._work_inside(item, device)
            elif isinstance(item, Prompts):
                self._prompt(item, device)
            elif isinstance(item, Companion):
                self.companion = item.module.to(device=device, dtype=torch.float32)
                self._remember((f"companion.{n}", p) for n, p in item.module.named_parameters())
            elif isinstance(item, Join):
                self.join = item.module.to(device=device, dtype=torch.float32)
                self._remember((f"join.{n}", p) for n, p in item.module.named_parameters())
            elif isinstance(item, Override):
                self._copy(item, originals[item.parameter])
            else:
                self._tune(item, backbone.model)

    def _insert(self, item: Insertion, device: torch.device) -> None:
        site = item.site
        module = item.module.to(device=device, dtype=torch.float32)
        self.insertions[site.name.replace(".", "_")] = module
        self._sites.append(site)
        if item.parallel:
            self._parallel.add(site.name)
        self._remember((f"{site.name}.{n}", p) for n, p in module.named_parameters())

    def _work_inside(self, item: Heads | Stream, device: torch.device) -> None:
        module = item.module.to(device=device, dtype=torch.float32)
        self.inside[item.name.replace(".", "_")] = module
        self._inside.append(item)
        self._remember((f"{item.name}.{n}", p) for n, p in module.named_parameters())

    def _prompt(self, item: Prompts, device: torch.device) -> None:
        module = item.module.to(device=device, dtype=torch.float32)
        self.prompts[item.tower] = module
        self._prompts.append(item)
        self._remember((f"{item.tower}.prompts.{n}", p) for n, p in module.named_parameters())

    def _copy(self, item: Override, original: nn.Parameter) -> None:
        parameter = item.parameter
        copy = nn.Parameter(original.detach().to(torch.float32, copy=True))
        self.lr_scales |= {parameter: item.lr_scale} if item.lr_scale != 1 else {}
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

    def kept(self) -> dict[str, Tensor]:
        """What must be saved and loaded beside trained values, by file names.

        A fusion's float buffers, and all that a companion holds.
        """
        held: dict[str, Tensor] = {}
        if self.join is not None:
            held |= {
                f"join.{name}": value
                for name, value in self.join.state_dict(keep_vars=True).items()
                if not isinstance(value, nn.Parameter) and value.is_floating_point()
            }
        if self.companion is not None:
            held |= {f"companion.{name}": x for name, x in self.companion.state_dict().items()}
        return {name: value for name, value in held.items() if name not in self._names}

    def count(self) -> int:
        """Number of trained values; shared ones count once."""
        return sum(p.numel() for p in self._names.values())

    @property
    def is_pure_override(self) -> bool:
        """Whether the adapter consists of trained copies alone, and so can be merged."""
        return bool(self._originals) and not (self._sites or self._has_others)

    @property
    def is_pure_insertion(self) -> bool:
        """Whether the adapter consists of insertions alone, and so can share a batch."""
        return bool(self._sites) and not (self._originals or self._has_others)

    @property
    def has_roots(self) -> bool:
        """Whether parts of it work at a tower's input, or beside the towers."""
        return bool(self._prompts or self.companion or self.join or self._shadow)

    @property
    def reached_sites(self) -> list[Site]:
        """Where its modules stand: sites of insertions, and attentions worked inside of."""
        return [*self._sites, *(item.site for item in self._inside)]

    @property
    def copied(self) -> list[str]:
        """Backbone parameters that it trains copies of."""
        return list(self._originals)

    @property
    def _has_others(self) -> bool:
        """Whether there is anything but insertions and trained copies."""
        return bool(self._inside or self.has_roots)

    def site_hooks(self) -> Iterator[tuple[str, SiteHook]]:
        """For each site the dotted path of its submodule, and what replaces its output."""
        for site in self._sites:
            module = self.insertions[site.name.replace(".", "_")]
            yield site.path, SiteHook(self, module, site, site.name in self._parallel)

    def overrides(self) -> Mapping[str, Tensor]:
        """Tensors to use instead of backbone parameters now: ``W0 + s (W1 - W0)``, W0's dtype."""
        if dialled(self) == 0.0:
            return {}
        return {
            name: self._interpolated(name, original).to(original.dtype)
            for name, original in self._originals.items()
        }

    def _interpolated(self, name: str, original: Tensor) -> Tensor:
        trained = self.copies[name.replace(".", "/")]
        strength = dialled(self)
        if strength == 1.0:
            return trained
        start = original.detach().float()
        return start + strength * (trained - start)

    def bind(self, backbone: Backbone) -> None:
        """Take effect on `backbone`; the engine makes sure that no other adapter is active."""
        modules = dict(backbone.model.named_modules())
        for path, hook in self.site_hooks():
            if hook.tap is not None:
                source = modules[hook.tap.site.source]
                self._handles.append(source.register_forward_hook(hook.tap))
            self._handles.append(modules[path].register_forward_hook(hook))
        for item in self._inside:
            self._handles += bind_inside(self, item, backbone)
        for item in self._prompts:
            self._handles += prompt_hooks(self, item, backbone)
        self.active = True
        self.refresh(backbone)

    def refresh(self, backbone: Backbone) -> None:
        """Hand overrides and shadow to the backbone as the present strength asks."""
        backbone.override_source = self.overrides if self._originals else None
        backbone.shadow = None
        dial = self._prompts and self.strength > 0.0
        backbone.prompting = Prompting(self, self._prompts) if dial else None
        if isinstance(backbone, FusedBackbone):
            backbone.joining = None if self.join is None else Joining(self, self.join)
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
        backbone.prompting = None
        if isinstance(backbone, FusedBackbone):
            backbone.joining = None
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
