"""Tensors that stand in for a model's parameters during one call."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

# One encode at a time while parameters are swapped: the swap is visible to every thread.
_SWAPPING = threading.RLock()


@contextmanager
def overridden(module: nn.Module, overrides: Mapping[str, Tensor]) -> Iterator[None]:
    """Use `overrides` (dotted parameter name -> tensor) in `module` inside the block.

    The entries of the owning modules' parameter tables are exchanged for the whole block rather
    than around each submodule's forward, because some modules read another's weight directly:
    `nn.MultiheadAttention` in SigLIP's pooling head reads `out_proj.weight`. The original
    parameters are back afterwards, also after an exception.

    Raises:
        KeyError: a name that is no parameter of `module`; nothing has been exchanged then.
        ValueError: a tensor of another shape.
    """
    if not overrides:
        yield
        return
    slots = [_slot(module, name, tensor) for name, tensor in overrides.items()]
    with _SWAPPING:
        kept = [(table, leaf, table[leaf]) for table, leaf, _ in slots]
        try:
            for table, leaf, tensor in slots:
                table[leaf] = tensor
            yield
        finally:
            for table, leaf, parameter in kept:
                table[leaf] = parameter


def _slot(module: nn.Module, name: str, tensor: Tensor) -> tuple[dict, str, Tensor]:
    path, _, leaf = name.rpartition(".")
    try:
        table = module.get_submodule(path)._parameters
    except AttributeError as error:
        raise KeyError(f"no parameter {name!r} to override: {error}") from error
    current = table.get(leaf)
    if current is None:
        raise KeyError(f"no parameter {name!r} to override")
    if current.shape != tensor.shape:
        raise ValueError(
            f"override of {name!r} has shape {tuple(tensor.shape)}, not {tuple(current.shape)}"
        )
    return table, leaf, tensor
