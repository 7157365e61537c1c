"""The first layers of a tower on their own: run them and stop, or start behind them.

A tower whose first n layers nobody adapts gives the same hidden states for the same input in every
epoch. ``hidden_after`` computes them, ``standing_in`` lets an encode call start from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone, Tower

FAMILIES = ("clip", "siglip")
"""Families whose towers are an embedding and blocks that pass on one tensor each."""


class _EnoughError(Exception):
    """Leaves a forward pass whose rest is not needed."""


def hidden_after(
    backbone: Backbone, tower: Tower, layers: int, run: Callable[[], Tensor]
) -> Tensor:
    """What the first `layers` (1 or more) layers of a tower give, (B, tokens, width).

    Args:
        backbone: of one of `FAMILIES`.
        tower: which one `run` runs.
        layers: of the tower; the rest of it is not computed.
        run: encodes some inputs, such as ``lambda: backbone.encode_image(pixels)``.

    Raises:
        UserError: the layers of this model do not pass on a tensor.
    """
    found: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output)
        raise _EnoughError

    handle = _blocks(backbone, tower)[layers - 1].register_forward_hook(keep)
    try:
        run()
    except _EnoughError:
        pass
    finally:
        handle.remove()
    if not found or not isinstance(found[0], Tensor):
        raise UserError("the layers of this model do not pass on a tensor", where=backbone.source)
    return found[0]


@contextmanager
def standing_in(backbone: Backbone, tower: Tower, layers: int, hidden: Tensor) -> Iterator[None]:
    """Inside the block, `hidden` stands for what the first `layers` layers of a tower give.

    Neither they nor the embedding run; the pictures given to ``encode_image`` are not looked at,
    the ids given to ``encode_text`` only for their shape and the place to pool at. Not for several
    threads at once on one backbone.
    """

    def stand_in(*_args: Any, **_options: Any) -> Tensor:
        return hidden

    path = next(s.path for s in backbone.sites() if s.name == f"{tower}.embedding")
    modules = [backbone.model.get_submodule(path), *_blocks(backbone, tower)[:layers]]
    # An instance's own `forward` is found before its class's; taking it away restores the model.
    for module in modules:
        module.__dict__["forward"] = stand_in
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def _blocks(backbone: Backbone, tower: Tower) -> list[nn.Module]:
    """The layers of a tower in order."""
    sites = [s for s in backbone.sites() if s.tower == tower and s.kind == "block"]
    return [backbone.model.get_submodule(s.path) for s in sites]
