"""Several adapters in one forward pass: each row of a batch goes through the adapter it asks for.

The frozen computation is the same for all rows and is done once; at a site only the rows of an
adapter that stands there pass through its module. Rows do not see each other in a transformer, so
each row comes out as if its adapter had been alone.

This works for adapters made of insertions (`AttachedAdapter.is_pure_insertion`). Trained copies of
parameters and tuned copies of the model change the shared computation itself: those need a pass of
their own, see `crossadapt.search.embedder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossadapt.adapters.attach import active
from crossadapt.adapters.tap import Tap
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter, SiteHook
    from crossadapt.backbones.base import Backbone


class _Rows:
    """The hook of one site: every adapter that stands there works on its own rows."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.parts: list[tuple[Tensor, SiteHook]] = []

    @property
    def by_token(self) -> bool:
        """Whether every token is treated by itself; see `crossadapt.backbones.pooled_token`."""
        return all(hook.by_token for _, hook in self.parts)

    def __call__(self, site: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        if len(first) != self.batch:
            raise ValueError(f"the mixture has {self.batch} rows, the batch has {len(first)}")
        for rows, hook in self.parts:
            if hook.rests:
                continue
            if len(rows) == self.batch:
                # All rows, which stand in order: nothing to pick out and to put back.
                first = hook.blend(first, hook.read(inputs)[:1] if hook.parallel else ())
            else:
                rows = rows.to(first.device)
                source = tuple(x[rows] for x in hook.read(inputs)[:1]) if hook.parallel else ()
                first = first.index_copy(0, rows, hook.blend(first[rows], source))
        return (first, *output[1:]) if isinstance(output, tuple) else first


@contextmanager
def mixed(backbone: Backbone, rows: Sequence[AttachedAdapter | None]) -> Iterator[Backbone]:
    """Inside the block, row i of an encoded batch uses adapter ``rows[i]``, or none for None.

    Args:
        backbone: what the adapters are attached to; none of them may be active.
        rows: one entry for each row of the batches (B, …) that are encoded in the block, at each
            adapter's own strength.

    Raises:
        UserError: an adapter is active, or one is not made of insertions alone.
    """
    busy = active(backbone)
    if busy is not None:
        raise UserError(
            f"adapter {busy.name!r} is active, so every row would use it",
            fix="deactivate it first: activate(backbone, None)",
        )
    places: dict[int, list[int]] = {}
    chosen: dict[int, AttachedAdapter] = {}
    for row, adapter in enumerate(rows):
        if adapter is not None:
            chosen[id(adapter)] = adapter
            places.setdefault(id(adapter), []).append(row)
    for adapter in chosen.values():
        if not adapter.is_pure_insertion:
            raise UserError(
                f"{adapter.method} changes the model itself and cannot share a batch",
                where=f"adapter {adapter.name!r}",
                fix="encode its rows by themselves, with the adapter active",
            )
    sites: dict[str, _Rows] = {}
    taps: list[Tap] = []
    for key, adapter in chosen.items():
        index = torch.tensor(places[key])
        for path, hook in adapter.site_hooks():
            sites.setdefault(path, _Rows(len(rows))).parts.append((index, hook))
            if hook.tap is not None:
                taps.append(hook.tap)
    handles = []
    try:
        for tap in taps:
            source = backbone.model.get_submodule(tap.site.source)
            handles.append(source.register_forward_hook(tap))
        for path, hook in sites.items():
            module = backbone.model.get_submodule(path)
            handles.append(module.register_forward_hook(hook))
        yield backbone
    finally:
        for handle in handles:
            handle.remove()
