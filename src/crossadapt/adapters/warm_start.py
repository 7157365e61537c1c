"""Start one adapter from the values of another that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossadapt.adapters.reading import check_fingerprint, read_adapter_config, read_tensors
from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.base import Backbone


def start_from(
    backbone: Backbone, adapter: AttachedAdapter, folder: Path, *, own: tuple[str, ...] = ()
) -> None:
    """Give an attached adapter the values saved in `folder`.

    Args:
        backbone: what it is attached to, and what the saved one was trained on.
        adapter: written to, and only if everything fits.
        folder: of an adapter of the same method.
        own: names of tensors that keep their own start where the saved adapter has none of them.

    Raises:
        UserError: the folder is damaged, of another backbone or method, or of other shapes.
    """
    saved = read_adapter_config(folder)
    if saved["method"] != adapter.method:
        raise UserError(
            f"the adapter to start from is {saved['method']}, not {adapter.method}",
            where=str(folder),
            fix=f"name the folder of a {adapter.method} run",
        )
    check_fingerprint(backbone, saved, folder)
    targets: dict[str, Tensor] = {**adapter.trained(), **adapter.kept()}
    for name in own:
        targets.pop(name, None)
    found = read_tensors(folder, saved, {name: tuple(x.shape) for name, x in targets.items()})
    with torch.no_grad():
        for name, x in targets.items():
            x.copy_(found[name])
