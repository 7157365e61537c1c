"""Read a Hugging Face model directory, completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from crossadapt.backbones.building import FAMILIES, config_class, make_model, model_class
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.preprocess import ImagePreprocess
from crossadapt.backbones.quiet import no_progress_bars
from crossadapt.backbones.tokenizing import make_tokens
from crossadapt.errors import UserError

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


def load_directory(
    folder: Path,
    *,
    source: str,
    dtype: torch.dtype = torch.float32,
    weights: bool = True,
    tokenizer: str | None = None,
) -> HFBackbone:
    """A CLIP, SigLIP or BLIP backbone from a directory in Hugging Face layout.

    Args:
        folder: the directory.
        source: what the user named; kept in run records and used in messages.
        dtype: weights are cast to this when read.
        weights: False builds the architecture without weights.
        tokenizer: another directory to read the tokenizer from.

    Raises:
        UserError: a missing or damaged file, an unsupported model, tensors that do not fit.
    """
    config = _config(folder)
    preprocess = _preprocess(folder, config)
    model = _model(folder, config, dtype) if weights else make_model(config, seed=0, weights=False)
    home = folder if tokenizer is None else Path(tokenizer).expanduser()
    tokens = make_tokens(read_tokenizer(home), config, str(home))
    backbone = FAMILIES[config.model_type](
        model, source=source, preprocess=preprocess, tokenize=tokens
    )
    if preprocess.size != backbone.image_size:
        raise UserError(
            f"The image processor makes pictures of {preprocess.size}, "
            f"but the model reads {backbone.image_size}.",
            where=str(folder / "preprocessor_config.json"),
            fix="use the processor the model was trained with",
        )
    return backbone


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; a missing or damaged file is a `UserError`."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError("A file cannot be read.", where=f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            "A file is not valid JSON.", where=f"{path}: {error}", fix="copy or download it again"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError("A file does not hold a JSON object.", where=str(path))
    return loaded


def read_tokenizer(folder: Path) -> Any:
    """The Hugging Face tokenizer saved in `folder`; nothing is looked up elsewhere."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(
            "The directory has no tokenizer.",
            where=str(folder),
            fix=f"add tokenizer_config.json and one of {', '.join(_TOKENIZER_FILES)}",
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise UserError(
            "The tokenizer needs a package that is not installed.",
            where=f"{folder}: {error}",
            fix="pip install sentencepiece protobuf",
        ) from error
    except Exception as error:  # the tokenizers library raises bare Exception on damaged files
        raise UserError(
            "The tokenizer cannot be read.",
            where=f"{folder}: {error}",
            fix="copy or download its files again",
        ) from error


def _config(folder: Path) -> Any:
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError("The backbone is not a directory.", where=str(folder))
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                "This directory holds an adapter, not a backbone.",
                where=str(folder),
                fix="give it as the adapter, and the model it was trained on as the backbone",
            )
        raise UserError(
            "The directory has no config.json, so it is not a model directory.",
            where=str(folder),
            fix="point at the directory that save_pretrained or a download wrote",
        )
    values = read_json(path)
    family = values.get("model_type")
    if family not in FAMILIES:
        hint = "SigLIP 2 checkpoints of one resolution (…-patch16-224 and the like) are supported"
        raise UserError(
            f"Models of type {family!r} are not supported.",
            where=str(path),
            fix=hint if family == "siglip2" else "use a CLIP, SigLIP or BLIP model",
        )
    _check_head(family, values.get("architectures"), path)
    try:
        return config_class(family).from_dict(values)
    except Exception as error:  # transformers validates with its own error types
        raise UserError(
            "The model configuration is not valid.", where=f"{path}: {error}"
        ) from error


def _check_head(family: str, architectures: Any, path: Path) -> None:
    """BLIP checkpoints for captions and answers have no projections and no matching head."""
    kind = (architectures or [None])[0] if isinstance(architectures, list) else None
    if family == "blip" and kind not in (None, "BlipForImageTextRetrieval"):
        raise UserError(
            f"A {kind} has no projections and no matching head, which retrieval needs.",
            where=str(path),
            fix="use a BlipForImageTextRetrieval, such as Salesforce/blip-itm-base-coco",
        )


def _preprocess(folder: Path, config: Any) -> ImagePreprocess:
    """From ``preprocessor_config.json``, or the combined file newer releases write."""
    single, combined = folder / "preprocessor_config.json", folder / "processor_config.json"
    if single.is_file():
        return ImagePreprocess.from_config(read_json(single), config.model_type, str(single))
    if combined.is_file():
        values = read_json(combined).get("image_processor")
        if isinstance(values, dict):
            return ImagePreprocess.from_config(values, config.model_type, str(combined))
    raise UserError(
        "The directory has no image processor.",
        where=str(folder),
        fix="add the checkpoint's preprocessor_config.json",
    )


def _model(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(
            "The directory has no weights.",
            where=str(folder),
            fix=f"add one of {', '.join(WEIGHTS)}",
        )
    try:
        with no_progress_bars():
            model, report = model_class(config.model_type).from_pretrained(
                folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # safetensors, torch and transformers each raise their own
        raise UserError(
            "The weights cannot be read.",
            where=f"{folder}: {error}",
            fix="the file is damaged or belongs to another config.json; copy or download it again",
        ) from error
    # from_pretrained fills absent tensors with random numbers; a backbone must not.
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise UserError(
            f"The weights lack {len(absent)} tensors, the first is {absent[0]!r}.",
            where=str(folder),
            fix="copy or download the weights again, or correct config.json",
        )
    return model
