"""open_clip models from a directory, and back into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from crossadapt.backbones.directory import read_json
from crossadapt.backbones.open_clip import OpenClipBackbone
from crossadapt.backbones.open_clip_building import (
    byte_pairs,
    checked_settings,
    make_open_clip,
    open_clip_preprocess,
    wrapped,
)
from crossadapt.backbones.open_clip_library import open_clip
from crossadapt.errors import UserError

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_SCALARS = ("logit_scale", "logit_bias")
# Saved by old releases, made anew by the model.
_BUFFERS = ("attn_mask", "text.attn_mask")


def load_open_clip(
    folder: Path,
    *,
    source: str,
    dtype: torch.dtype = torch.float32,
    weights: bool = True,
    tokenizer: str | None = None,
) -> OpenClipBackbone:
    """A backbone from a directory in open_clip's layout (what its hub repositories hold).

    Args:
        folder: holds ``open_clip_config.json``, the weights, and tokenizer files where the
            configuration names a Hugging Face tokenizer.
        source: what the user named.
        dtype: weights are cast to this when read.
        weights: False builds the architecture without weights.
        tokenizer: another directory to read a Hugging Face tokenizer from.

    Raises:
        UserError: a missing or damaged file, an unsupported model, tensors that do not fit.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"The directory has no {CONFIG}, so it is not an open_clip model.",
            where=str(folder),
            fix="name a directory or hub repository in open_clip's layout",
        )
    values = read_json(path)
    settings = checked_settings(values.get("model_cfg"), str(path))
    preprocess = open_clip_preprocess(values.get("preprocess_cfg") or {}, settings, str(path))
    tokens = _tokenizer(settings, folder if tokenizer is None else Path(tokenizer).expanduser())
    model = make_open_clip(settings, seed=0, weights=False)
    if weights:
        model = _filled(model, folder, dtype)
    return wrapped(model, settings, source=source, preprocess=preprocess, tokenizer=tokens)


def _tokenizer(settings: dict[str, Any], folder: Path) -> Any:
    text = settings["text_cfg"]
    options = dict(text["tokenizer_kwargs"] or {})
    if not text["hf_tokenizer_name"]:
        return open_clip().SimpleTokenizer(**options) if options else byte_pairs()
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(
            f"The model needs the tokenizer {text['hf_tokenizer_name']!r}.",
            where=str(folder),
            fix="copy its files into the directory, or give the directory that holds them as the "
            "tokenizer",
        )
    from open_clip.tokenizer import HFTokenizer

    length, mode = text["context_length"], text["tokenizer_mode"]
    options |= {"local_files_only": True, "trust_remote_code": False}
    try:
        return HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, **options)
    except Exception as error:  # the tokenizers library raises bare Exception on damaged files
        raise UserError(
            "The tokenizer cannot be read.",
            where=f"{folder}: {error}",
            fix="copy or download its files again",
        ) from error


def _filled(model: nn.Module, folder: Path, dtype: torch.dtype) -> nn.Module:
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            "The directory has no weights.",
            where=str(folder),
            fix=f"add one of {', '.join(WEIGHTS)}; of a hub repository ask for open_clip:ID",
        )
    state = _converted(_state(path))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    odd = sorted(expected.keys() ^ state.keys()) or sorted(
        name for name, shape in expected.items() if state[name].shape != shape
    )
    if odd:
        kind = "lacks" if odd[0] not in state else "has an unknown"
        kind = "has a mis-shaped" if odd[0] in state and odd[0] in expected else kind
        raise UserError(
            f"The weight file {kind} tensor, {odd[0]!r} ({len(odd)} such).",
            where=str(path),
            fix=f"the file is damaged or belongs to another {CONFIG}; download both again",
        )
    with torch.no_grad():
        model.load_state_dict(state, assign=True)
    towers: Any = model
    if towers.text.attn_mask is not None:
        # The one tensor that is not in the file, and so still without values.
        towers.text.attn_mask = towers.text.build_causal_mask()
    return model.to(dtype)


def _state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch each raise their own
        raise UserError(
            "The weights cannot be read.",
            where=f"{path}: {error}",
            fix="the file is damaged; copy or download it again",
        ) from error
    loaded = loaded.get("state_dict", loaded)
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def _converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of a plain `CLIP` (text tower at the top level) as `CustomTextCLIP` has them."""
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_to_custom_text_state_dict(state)
    # Some checkpoints hold these as a list of one.
    single = [name for name in _SCALARS if name in state and state[name].numel() == 1]
    scalars = {name: state[name].reshape(()) for name in single}
    return {name: t for name, t in {**state, **scalars}.items() if name not in _BUFFERS}


def save_open_clip(backbone: OpenClipBackbone, folder: Path, state: dict[str, Tensor]) -> None:
    """Write configuration and weights in open_clip's layout, which open_clip itself loads."""
    from safetensors.torch import save_file

    settings = {key: value for key, value in backbone.settings.items() if key != "logit_bias"}
    model = {**settings, "custom_text": True}
    if backbone.settings["logit_bias"]:
        model["init_logit_bias"] = -10
    prepared = backbone.preprocess
    values = {
        "size": list(prepared.size),
        "mode": "RGB",
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "interpolation": Image.Resampling(prepared.resample).name.lower(),
        "resize_mode": "squash" if prepared.resize is not None else "shortest",
    }
    text = json.dumps({"model_cfg": model, "preprocess_cfg": values}, indent=2)
    (folder / CONFIG).write_text(text + "\n")
    save_file(state, folder / WEIGHTS[0])
    inner = getattr(backbone.tokenize.tokenizer, "tokenizer", None)
    if inner is not None:
        inner.save_pretrained(folder)
