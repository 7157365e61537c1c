"""Adapter folders: ``adapter_config.json``, ``adapter_model.safetensors``, card and run record.

The tensor file repeats the config in its header, so that a config and tensors that do not belong
together are noticed. Loading is strict, and never unpickles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as to_safetensors

from crossadapt.adapters.attach import attached, build, install
from crossadapt.adapters.reading import (
    CONFIG_FILE,
    FORMAT_VERSION,
    TENSOR_FILE,
    check_fingerprint,
    read_adapter_config,
    read_tensors,
)
from crossadapt.adapters.registry import make_config
from crossadapt.errors import UserError
from crossadapt.files import replace_files

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.base import Backbone

CARD_FILE = "README.md"
RUN_FILE = "run.json"


def save_adapter(
    backbone: Backbone,
    name: str,
    folder: str | Path,
    *,
    card: str | None = None,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Save one attached adapter; on any failure what was in the folder before is intact.

    Args:
        backbone: what it is attached to; identified in the folder by source and fingerprint.
        name: the adapter's name; it is not stored.
        folder: made if missing. Files of the same names are replaced, others are left alone.
        card: text of ``README.md``; a short factual card when left out.
        run: content of ``run.json`` (resolved options, seeds, data hash, protocol).

    Returns:
        The folder.

    Raises:
        UserError: no such adapter, or the folder cannot be written (disk full, no permission).
    """
    adapter = attached(backbone, name)
    folder = Path(folder)
    config = {
        "format_version": FORMAT_VERSION,
        "method": adapter.method,
        "config": asdict(adapter.config),
        "seed": adapter.seed,
        "strength": adapter.strength,
        "trainable": adapter.count(),
        "backbone": {
            "family": backbone.family,
            "source": backbone.source,
            "fingerprint": backbone.fingerprint,
        },
    }
    tensors = {
        key: parameter.detach().to("cpu", torch.float32).contiguous()
        for key, parameter in {**adapter.trained(), **adapter.kept()}.items()
    }
    # One header entry only: safetensors writes several in random order, and equal adapters should
    # be equal files.
    header = {"adapter_config": json.dumps(config, sort_keys=True)}
    files = {TENSOR_FILE: to_safetensors(tensors, metadata=header)}
    if run is not None:
        files[RUN_FILE] = _json(run)
    files[CARD_FILE] = (card if card is not None else _card(config)).encode()
    files[CONFIG_FILE] = _json(config)
    replace_files(folder, files)
    return folder


def load_adapter(
    backbone: Backbone, folder: str | Path, *, name: str = "default"
) -> AttachedAdapter:
    """Attach the adapter saved in `folder`, activate it, and put it in evaluation mode.

    Args:
        backbone: the very backbone it was trained on (equal fingerprint).
        folder: what `save_adapter` wrote.
        name: its name from now on.

    Raises:
        UserError: the folder is missing, damaged, pickled, of a newer format or of another
            backbone, or its tensors do not fit the method; nothing has changed then.
    """
    folder = Path(folder)
    saved = read_adapter_config(folder)
    try:
        config = make_config(saved["method"], saved["config"])
    except UserError as error:
        where = ": ".join(filter(None, (str(folder / CONFIG_FILE), error.where)))
        fix = f"{error.fix}; or upgrade crossadapt, if a newer release wrote the folder"
        raise UserError(error.what, where=where, fix=fix) from error
    check_fingerprint(backbone, saved, folder)
    adapter = build(backbone, config, name=name, seed=saved["seed"])
    wanted: dict[str, torch.Tensor] = {**adapter.trained(), **adapter.kept()}
    tensors = read_tensors(folder, saved, {key: tuple(p.shape) for key, p in wanted.items()})
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(tensors[key])
    adapter.strength = float(saved.get("strength", 1.0))
    adapter.eval()
    return install(backbone, adapter)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _card(config: Mapping[str, Any]) -> str:
    options = ", ".join(f"{k}={v}" for k, v in config["config"].items()) or "none"
    return f"""# {config["method"]} adapter

- backbone: `{config["backbone"]["source"]}`
- backbone fingerprint: `{config["backbone"]["fingerprint"]}`
- trained values: {config["trainable"]:,}
- options: {options}

Load it with `crossadapt.load_adapter(backbone, folder)` onto that backbone.
"""
