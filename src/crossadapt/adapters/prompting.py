"""Carry out `Prompts`: learned tokens in a tower's sequence, for as long as an adapter is active.

Text. `encode_text` first puts placeholder ids into every text, between the start token and the
words (`Tokens.make_room`), so that positions, attention mask and the place of the end-of-text
token follow from the ids as for any other text. Behind the embedding the placeholders' vectors
are overwritten: prompt plus position embedding.

Vision. Behind the embedding, and behind the random dropping of patches while training, the tokens
are appended; the last block's output loses them again.

Strength. A sequence is as long as it is or longer, nothing between. At 0 < s < 1 a tower with
prompts therefore encodes twice and gives ``frozen + s (prompted - frozen)`` of its features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossadapt.adapters.dial import at_strength, dialled
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.adapters.plan import Prompts
    from crossadapt.backbones.base import Backbone


class Prompting:
    """What an adapter with prompts asks of the backbone's encode functions."""

    def __init__(self, adapter: AttachedAdapter, items: Sequence[Prompts]) -> None:
        self.adapter = adapter
        self.counts = {item.tower: item.count for item in items}

    @property
    def room(self) -> int:
        """Placeholder tokens that every text needs now."""
        return self.counts.get("text", 0) if dialled(self.adapter) > 0.0 else 0

    def encode(self, tower: str, run: Callable[[], Tensor]) -> Tensor:
        """Features of a tower at the adapter's strength; `run` encodes once."""
        strength = dialled(self.adapter)
        if tower not in self.counts or strength in (0.0, 1.0):
            return run()
        with at_strength(1.0):
            prompted = run()
        with at_strength(0.0):
            frozen = run()
        return frozen + strength * (prompted - frozen)


class _Hook:
    """A hook of one `Prompts` item; an object, so that a deep copy of the backbone copies it."""

    def __init__(self, adapter: AttachedAdapter, item: Prompts, start: int, layer: int = 0) -> None:
        self.adapter, self.item, self.start, self.layer = adapter, item, start, layer

    def off(self) -> bool:
        return dialled(self.adapter) == 0.0

    def tokens(self, like: Tensor) -> Tensor:
        """The prompts of the layer for a batch: (B, count, width) in the dtype of `like`."""
        # `shape` rather than `len`, which a trace would take for a constant.
        return self.item.module(self.layer).to(like.dtype).expand(like.shape[0], -1, -1)

    def replaced(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, L, width) with the prompt positions overwritten."""
        if self.item.tower == "vision":
            return torch.cat([x[:, : -self.item.count], tokens], 1)
        end = self.start + self.item.count
        return torch.cat([x[:, : self.start], tokens, x[:, end:]], 1)


class _Append(_Hook):
    """Behind the vision embedding: the prompts of layer 0 follow the patches."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], x: Tensor) -> Tensor:
        return x if self.off() else torch.cat([x, self.tokens(x)], 1)


class _Write(_Hook):
    """Behind the text embedding: the prompts of layer 0 take the place of the placeholders."""

    def __call__(self, module: Any, inputs: tuple[Any, ...], x: Tensor) -> Tensor:
        if self.off():
            return x
        places = slice(self.start, self.start + self.item.count)
        positions = module.position_embedding.weight[places].to(x.dtype)
        return self.replaced(x, self.tokens(x) + positions)


class _Replace(_Hook):
    """In front of a deeper block: its own prompts overwrite what came of the earlier ones."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.off():
            return inputs
        return (self.replaced(inputs[0], self.tokens(inputs[0])), *inputs[1:])


class _Strip(_Hook):
    """Behind the last vision block: the prompts are gone, so that pooling sees patches only."""

    by_token = True

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if self.off():
            return output
        if isinstance(output, tuple):
            return (output[0][:, : -self.item.count], *output[1:])
        return output[:, : -self.item.count]


def prompt_hooks(
    adapter: AttachedAdapter, item: Prompts, backbone: Backbone
) -> list[RemovableHandle]:
    """Put the hooks of one item on its tower."""
    module = {
        site.name: backbone.model.get_submodule(site.path)
        for site in backbone.sites()
        if site.tower == item.tower and site.kind in ("embedding", "block")
    }
    start = 0 if item.tower == "vision" else backbone.tokenize.start
    entry = module[f"{item.tower}.embedding"]
    write = _Append if item.tower == "vision" else _Write
    handles = [entry.register_forward_hook(write(adapter, item, start))]
    for layer in range(1, item.depth):
        hook = _Replace(adapter, item, start, layer)
        handles.append(module[f"{item.tower}.{layer}.block"].register_forward_pre_hook(hook))
    if item.tower == "vision":
        last = module[f"vision.{backbone.depth('vision') - 1}.block"]
        handles.append(last.register_forward_hook(_Strip(adapter, item, start)))
    return handles


def check_prompts(backbone: Backbone, item: Prompts, method: str) -> str:
    """Refuse prompts that do not fit the tower; the key of the item in its plan.

    Raises:
        UserError: an unknown tower, too deep, too many for the text tower's positions, or a module
            that does not give (count, width) for each of its layers.
    """
    sites = {site.name: site for site in backbone.sites()}
    site = sites.get(f"{item.tower}.embedding")
    if site is None or item.tower not in backbone.prompt_towers:
        raise UserError(
            f"the plan of {method} puts prompts into the {item.tower!r} tower",
            where=backbone.source,
            fix="this backbone takes prompts in: " + ", ".join(backbone.prompt_towers),
        )
    where = f"{item.tower}.prompts"
    depth = backbone.depth(item.tower)
    if not 1 <= item.depth <= depth:
        raise UserError(
            f"the prompts of {method} are {item.depth} layers deep, the tower has {depth}",
            where=where,
            fix=f"give a depth from 1 to {depth}",
        )
    most = backbone.tokens("text") - 3 if item.tower == "text" else item.count
    if not 1 <= item.count <= most:
        raise UserError(
            f"{method} asks for {item.count} prompt tokens",
            where=where,
            fix="give 1 or more"
            if item.count < 1
            else f"give at most {most}: the text tower has {most + 3} positions, and a start, an "
            "end and a word need one each",
        )
    for layer in range(item.depth):
        tokens = item.module(layer)
        if not isinstance(tokens, Tensor) or tokens.shape != (item.count, site.width):
            shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise UserError(
                f"the prompts of {method} for layer {layer} are {shape}",
                where=where,
                fix=f"the module must give ({item.count}, {site.width})",
            )
    return where
