"""Modules inside an attention: on its heads, or on the stream behind it.

Hooks see one submodule each, so what one of them meets is kept for the next, per thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossadapt.adapters.dial import dialled
from crossadapt.adapters.plan import Heads, Stream
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.base import Backbone, Site

# Names of the projections that read the attention's input, and of the one that writes its output.
_LAYOUTS = ((("q_proj", "k_proj"), "out_proj"), (("qkv",), "projection"))


class Stash:
    """Tensors on their way from one hook to the next in the same thread."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], Tensor] = {}

    def put(self, key: str, value: Tensor) -> None:
        """Keep a tensor until it is taken, or replaced."""
        self._kept[threading.get_ident(), key] = value

    def take(self, key: str) -> Tensor:
        """The tensor kept under `key`, which is then gone."""
        return self._kept.pop((threading.get_ident(), key))

    def __deepcopy__(self, memo: Any) -> Stash:
        # What is under way belongs to the forward pass of the original.
        return Stash()


def head_projections(attention: nn.Module) -> tuple[tuple[str, ...], str] | None:
    """Names of the submodules that make queries and keys, and of the output projection.

    None when the attention does not call them as modules of its own (PyTorch's packed one).
    """
    for inputs, output in _LAYOUTS:
        if all(isinstance(getattr(attention, n, None), nn.Linear) for n in (*inputs, output)):
            return inputs, output
    return None


def head_count(backbone: Backbone, site: Site) -> int:
    """Number of heads of the attention at `site`.

    Raises:
        UserError: its heads cannot be reached.
    """
    attention = backbone.model.get_submodule(site.path)
    count = getattr(attention, "num_heads", None)
    if head_projections(attention) is None or not isinstance(count, int):
        raise UserError(
            f"the heads of {type(attention).__name__} cannot be reached one by one",
            where=f"{backbone.source}, {site.path}",
            fix="use a method that works behind the attention, such as attention-adapter, or a "
            "Hugging Face backbone",
        )
    return count


def bind_inside(
    adapter: AttachedAdapter, item: Heads | Stream, backbone: Backbone
) -> list[RemovableHandle]:
    """Put the hooks of one item on its attention; the handles."""
    if isinstance(item, Stream):
        return StreamHooks(adapter, item.module).place(backbone, item.site)
    attention = backbone.model.get_submodule(item.site.path)
    found = head_projections(attention)
    if found is None:
        raise RuntimeError(f"{item.site.name} has no separable heads")
    inputs, output = found
    hook = HeadsHook(adapter, item.module, int(attention.num_heads))  # type: ignore[arg-type]
    handles = [
        attention.get_submodule(name).register_forward_hook(hook.keeper(place, len(inputs)))
        for place, name in enumerate(inputs)
    ]
    handles.append(attention.get_submodule(output).register_forward_pre_hook(hook))
    return handles


class HeadsHook:
    """In front of the output projection: ``heads + s (module(heads, input) - heads)``."""

    def __init__(self, adapter: AttachedAdapter, module: nn.Module, count: int) -> None:
        self.adapter, self.module, self.count = adapter, module, count
        self.stash = Stash()

    @property
    def wants_mass(self) -> bool:
        """Whether the module asks for the mass of the attention logits."""
        return bool(getattr(self.module, "wants_mass", False))

    def keeper(self, place: int, of: int) -> Keeper:
        """The hook on the `place`-th of the `of` input projections."""
        return Keeper(self, place, of)

    def __call__(self, projection: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """New heads for the output projection."""
        strength = dialled(self.adapter)
        if strength == 0.0:
            return None
        heads, x = inputs[0], self.stash.take("input")
        extra = {"mass": self.mass()} if self.wants_mass else {}
        new = self.module(heads, x, **extra)
        new = new if strength == 1.0 else heads + strength * (new - heads)
        return (new.to(heads.dtype), *inputs[1:])

    def mass(self) -> Tensor:
        """Log of the sum of exponentials of the logits of every query, (B, heads, T), float32."""
        query, key = (
            self.stash.take(name).unflatten(-1, (self.count, -1)).transpose(-2, -3).float()
            for name in ("query", "key")
        )
        return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).logsumexp(-1)


class Keeper:
    """Keeps the input of an attention, and where it is asked for its queries and keys."""

    def __init__(self, hook: HeadsHook, place: int, of: int) -> None:
        self.hook, self.place, self.of = hook, place, of

    def __call__(self, projection: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep; the output stays as it is."""
        if dialled(self.hook.adapter) == 0.0:
            return
        stash = self.hook.stash
        if self.place == 0:
            stash.put("input", inputs[0])
        if not self.hook.wants_mass:
            return
        parts = output.chunk(3, dim=-1)[:2] if self.of == 1 else (output,)
        for name, part in zip(("query", "key")[self.place :], parts, strict=False):
            stash.put(name, part)


class StreamHooks:
    """Adds ``s module(x + o)`` to an attention's output o, with x the input of its block."""

    def __init__(self, adapter: AttachedAdapter, module: nn.Module) -> None:
        self.adapter, self.module = adapter, module
        self.stash = Stash()

    def place(self, backbone: Backbone, site: Site) -> list[RemovableHandle]:
        """Put the hooks on the attention at `site` and on its block; the handles."""
        block = next(
            s
            for s in backbone.sites()
            if s.kind == "block" and (s.tower, s.layer) == (site.tower, site.layer)
        )
        return [
            backbone.model.get_submodule(block.path).register_forward_pre_hook(self.keep),
            backbone.model.get_submodule(site.path).register_forward_hook(self),
        ]

    def keep(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the stream in front of the block."""
        if dialled(self.adapter) != 0.0:
            self.stash.put("stream", inputs[0])

    def __call__(self, site: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """The attention's new output."""
        strength = dialled(self.adapter)
        if strength == 0.0:
            return output
        found = output[0] if isinstance(output, tuple) else output
        added = self.module(self.stash.take("stream") + found)
        found = (found + (added if strength == 1.0 else strength * added)).to(found.dtype)
        return (found, *output[1:]) if isinstance(output, tuple) else found


def check_inside(backbone: Backbone, item: Heads | Stream, method: str) -> str:
    """Refuse an item that cannot be carried out; its key otherwise.

    Raises:
        UserError: the site is no attention, its heads cannot be reached, or the module does not
            keep the shape of what it is given.
    """
    if not isinstance(item.module, nn.Module):
        raise UserError(
            f"the plan of {method} puts a {type(item.module).__name__} into an attention",
            where=item.name,
            fix="give a torch.nn.Module",
        )
    if item.site not in backbone.sites() or item.site.kind != "attention":
        raise UserError(
            f"the plan of {method} works inside {item.site.name!r}, which is no attention of "
            f"{backbone.source}",
            where=item.site.path,
            fix="name attention sites of the backbone",
        )
    if isinstance(item, Heads):
        _run_on_zeros(item, head_count(backbone, item.site))
    return item.name


def _run_on_zeros(item: Heads, heads: int) -> None:
    module, where, width = item.module, item.name, item.site.width
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    x = torch.zeros(1, 2, width, device=device)
    extra = {}
    if getattr(module, "wants_mass", False):
        extra["mass"] = torch.zeros(1, heads, 2, device=device)
    try:
        with torch.no_grad():
            out = module(x, x, **extra)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the module for {where} does not accept {width} channels: {error}",
            where=where,
            fix=f"build it with width {width}",
        ) from error
    if not isinstance(out, Tensor) or out.shape != x.shape:
        raise UserError(
            f"the module for {where} changes the shape of the heads",
            where=where,
            fix="it must map heads (..., width) to the same shape",
        )
