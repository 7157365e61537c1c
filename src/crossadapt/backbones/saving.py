"""Write a backbone as an ordinary Hugging Face model directory."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.open_clip import OpenClipBackbone
from crossadapt.backbones.open_clip_files import save_open_clip
from crossadapt.backbones.quiet import no_progress_bars
from crossadapt.errors import UserError

_PROCESSORS = {
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "blip": "BlipImageProcessor",
}


def save_backbone(backbone: HFBackbone, folder: str | Path, dtype: str = "float16") -> Path:
    """Save model, tokenizer and image processor so that any Hugging Face tool loads them.

    An open_clip backbone is saved in open_clip's own layout instead, which open_clip loads.

    Written: ``config.json``, ``model.safetensors``, ``tokenizer.json``,
    ``tokenizer_config.json``, ``preprocessor_config.json``. Everything is written beside `folder`
    first and moved into place when complete, so an interrupted or failed save leaves the
    previous files as they were. Other files in `folder` stay. Attached adapters are not part of
    it; merge them first.

    Args:
        backbone: what to save; unchanged.
        folder: target directory; its parent is created.
        dtype: ``float16`` (half the size; loading casts back to float32), ``bfloat16`` or
            ``float32``.

    Returns:
        The folder.

    Raises:
        UserError: no weights or tokenizer to save, a weight outside the dtype's range, an
            unwritable or full disk.
    """
    if backbone.family == "fuse":
        raise UserError(
            "A fused backbone is not saved as one.",
            where=backbone.source,
            fix="keep the folders of its members, and save the adapter",
        )
    folder = Path(folder).expanduser()
    state = _cast(backbone, dtype)
    tokenizer = getattr(backbone.tokenize, "tokenizer", None)
    if tokenizer is None:
        raise UserError(
            "A backbone without a tokenizer cannot be saved.",
            where=backbone.source,
            fix="load it with a corpus or a tokenizer",
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(backbone, staged, state, tokenizer, dtype)
            _move(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            "The backbone could not be saved; files saved earlier are intact.",
            where=f"{folder}: {error}",
            fix="free disk space or choose a folder you may write to",
        ) from error
    return folder


def _cast(backbone: HFBackbone, dtype: str) -> dict[str, torch.Tensor]:
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype not in kinds:
        raise UserError(f"Unknown dtype {dtype!r}.", fix="choose one of: " + ", ".join(kinds))
    if backbone.device.type == "meta":
        raise UserError("A backbone built without weights cannot be saved.", where=backbone.source)
    state = {}
    for name, value in backbone.model.state_dict().items():
        state[name] = value.detach().to("cpu", kinds[dtype]).contiguous()
        if not torch.isfinite(state[name]).all():
            raise UserError(
                f"A weight is not finite as {dtype}.",
                where=name,
                fix="save with dtype='float32', or check the training for divergence",
            )
    return state


def _write(backbone: HFBackbone, folder: Path, state: dict, tokenizer: Any, dtype: str) -> None:
    if isinstance(backbone, OpenClipBackbone):
        save_open_clip(backbone, folder, state)
        return
    config = copy.deepcopy(backbone.model.config)
    config.dtype = dtype
    config.architectures = [type(backbone.model).__name__]
    with no_progress_bars():
        backbone.model.save_pretrained(folder, state_dict=state)
    # Written after the weights: save_pretrained records the dtype of the model in memory.
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    values = {"image_processor_type": _PROCESSORS[backbone.family], **backbone.preprocess.to_dict()}
    (folder / "preprocessor_config.json").write_text(json.dumps(values, indent=2) + "\n")


def _move(staged: Path, folder: Path) -> None:
    # mkdtemp makes private directories; a model directory has ordinary permissions.
    umask = os.umask(0)
    os.umask(umask)
    staged.chmod(0o777 & ~umask)
    if not folder.exists():
        staged.rename(folder)
        return
    # Each file is replaced whole. The large weight file goes first, so that nothing but renames
    # of small files can come between it and the rest.
    for file in sorted(staged.iterdir(), key=lambda file: file.suffix != ".safetensors"):
        file.replace(folder / file.name)
