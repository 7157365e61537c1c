"""Read adapter folders strictly: every defect is named, with what to do about it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from crossadapt.adapters.validate import check_finite
from crossadapt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
FORMAT_VERSION = 1

_KEYS: dict[str, type] = {
    "format_version": int,
    "method": str,
    "config": dict,
    "seed": int,
    "trainable": int,
    "backbone": dict,
}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_RESTORE = "save the adapter again, or restore the folder from where it was made"


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The checked content of a folder's ``adapter_config.json``.

    Raises:
        UserError: no folder, no such file, pickled weights instead, a PEFT folder, invalid JSON,
            a missing or unknown key, or a newer format.
    """
    folder = Path(folder)
    if folder.suffix in _PICKLES:
        raise _pickled(folder)
    if not folder.is_dir():
        what = "is a file, not an adapter folder" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder} {what}", where=str(folder), fix=f"give the folder that holds {CONFIG_FILE}"
        )
    path = folder / CONFIG_FILE
    if not path.is_file():
        _refuse_pickles(folder)
        raise UserError(
            f"the folder has no {CONFIG_FILE}",
            where=str(folder),
            fix="give a folder that save_adapter or `crossadapt train` wrote",
        )
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(path), fix=_RESTORE) from error
    if not isinstance(saved, dict):
        raise UserError("not a JSON object", where=str(path), fix=_RESTORE)
    if "peft_type" in saved:
        raise UserError(
            "this is an adapter saved by PEFT",
            where=str(path),
            fix="load it with peft.PeftModel.from_pretrained",
        )
    _check_keys(saved, path)
    return saved


def _check_keys(saved: Mapping[str, Any], path: Path) -> None:
    version = saved.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"the folder has format {version}, this release reads up to {FORMAT_VERSION}",
            where=str(path),
            fix="upgrade crossadapt",
        )
    for key, kind in _KEYS.items():
        if not isinstance(saved.get(key), kind):
            state = "is missing" if key not in saved else f"should be a {kind.__name__}"
            raise UserError(f"the key {key!r} {state}", where=str(path), fix=_RESTORE)
    known = (*_KEYS, "strength")
    for key in saved:
        if key not in known:
            raise UserError(f"unknown key {key!r}", where=str(path), fix=did_you_mean(key, known))
    strength = saved.get("strength", 1.0)  # not in folders of the first days
    if not isinstance(strength, int | float) or not 0 <= strength <= 1:
        what = f"the key 'strength' is {strength!r}, not in [0, 1]"
        raise UserError(what, where=str(path), fix=_RESTORE)
    for key in ("family", "source", "fingerprint"):
        if not isinstance(saved["backbone"].get(key), str):
            raise UserError(f"the key 'backbone.{key}' is missing", where=str(path), fix=_RESTORE)


def check_fingerprint(backbone: Backbone, saved: Mapping[str, Any], folder: Path) -> None:
    """Refuse an adapter that was trained on another backbone.

    Raises:
        UserError: naming both backbones.
    """
    theirs = saved["backbone"]
    ours = backbone.fingerprint
    if theirs["fingerprint"] != ours:
        fix = f"load the backbone {theirs['source']!r}, or train an adapter for this one"
        if theirs["source"] == backbone.source:
            fix = (
                "its weights, tokenizer or preprocessing changed since: load the copy the adapter "
            )
            fix += "was trained on, or train it again"
        raise UserError(
            f"the adapter was trained on another backbone: {theirs['source']} "
            f"({theirs['family']}, fingerprint {theirs['fingerprint'][:12]}), "
            f"this one is {backbone.source} ({backbone.family}, {ours[:12]})",
            where=str(folder / CONFIG_FILE),
            fix=fix,
        )


def read_tensors(
    folder: Path, saved: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """The folder's tensors on the CPU: exactly the names and `shapes` wanted, float32, finite.

    Raises:
        UserError: a truncated, damaged or pickled file, one that belongs to another config, or a
            missing, extra, mis-shaped, mis-typed or non-finite tensor.
    """
    path = folder / TENSOR_FILE
    if not path.is_file():
        _refuse_pickles(folder)
        raise UserError(f"the folder has no {TENSOR_FILE}", where=str(folder), fix=_RESTORE)
    _check_container(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"the tensor file is damaged: {error}", where=str(path), fix=_RESTORE
        ) from error
    if header.get("adapter_config") != json.dumps(saved, sort_keys=True):
        raise UserError(
            f"{TENSOR_FILE} and {CONFIG_FILE} do not belong together",
            where=str(folder),
            fix="save the adapter again; the config the tensors were saved with is the "
            "'adapter_config' entry of the tensor file's header",
        )
    _check_tensors(tensors, shapes, path)
    return tensors


def _check_tensors(
    tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    missing, extra = sorted(shapes.keys() - tensors), sorted(tensors.keys() - shapes)
    if missing:
        raise UserError(
            f"{len(missing)} tensors are missing, the first is {missing[0]}",
            where=str(path),
            fix=_RESTORE,
        )
    if extra:
        raise UserError(
            f"{len(extra)} tensors are not part of the method, the first is {extra[0]}",
            where=str(path),
            fix=_RESTORE,
        )
    for key, tensor in tensors.items():
        where = f"{path}: {key}"
        if tuple(tensor.shape) != shapes[key]:
            raise UserError(
                f"the tensor has shape {tuple(tensor.shape)}, {shapes[key]} is needed",
                where=where,
                fix=_RESTORE,
            )
        if tensor.dtype != torch.float32:
            raise UserError(
                f"the tensor is {tensor.dtype}, adapters are saved as float32",
                where=where,
                fix=_RESTORE,
            )
        check_finite(tensor, where)


def _check_container(path: Path) -> None:
    """Tell a pickle and a cut-off file from other damage, for the sake of the message."""
    with path.open("rb") as file:
        start = file.read(8)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        # A zip archive or a pickle protocol mark: what torch.save writes. (As a header length,
        # 0x80 in the lowest byte is possible too; then a brace follows.)
        with path.open("rb") as file:
            file.seek(8)
            if file.read(1) != b"{":
                raise _pickled(path)
    size = path.stat().st_size
    if len(start) == 8 and 8 + struct.unpack("<Q", start)[0] <= size:
        return
    raise UserError(
        f"the tensor file is truncated or damaged ({size:,} bytes)", where=str(path), fix=_RESTORE
    )


def _refuse_pickles(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.suffix in _PICKLES:
            raise _pickled(file)


def _pickled(path: Path) -> UserError:
    return UserError(
        "pickled weights are not loaded, because a pickle can run any code",
        where=str(path),
        fix="ask for the safetensors version, or convert it where it was made",
    )
