"""``new:FILE``: a fresh model with random weights and its own tokenizer, to be trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from crossadapt.backbones.bpe import clip_tokenizer, read_corpus, train_bpe
from crossadapt.backbones.building import FAMILIES, config_class, make_config, make_model
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.preprocess import CLIP_MEAN, CLIP_STD, ImagePreprocess
from crossadapt.backbones.tokenizing import MissingTokens, make_tokens
from crossadapt.errors import UserError, did_you_mean

_TOKENIZER_KEYS = {"type", "vocab_size", "file", "corpus"}
_IMAGE_KEYS = {"size", "mean", "std"}
_FAMILIES = ("clip", "blip")


@dataclass(frozen=True)
class Architecture:
    """What a ``new:`` file says; every key is checked before anything is built."""

    vision: dict[str, Any]
    text: dict[str, Any]
    projection_dim: int
    tokenizer: dict[str, Any]
    image: dict[str, Any] = field(default_factory=dict)
    family: str = "clip"
    seed: int = 0
    logit_scale_init_value: float = 2.6592


def read_architecture(path: str | Path) -> Architecture:
    """Read a YAML or JSON architecture file (JSON is YAML).

    Raises:
        UserError: unreadable file, unknown or missing key, unknown family or tokenizer type.
    """
    where = str(path)
    try:
        loaded = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            "The architecture file cannot be read.",
            where=f"{where}: {error.strerror}",
            fix="give new: the path of a YAML file",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            "The architecture file is not valid YAML.", where=f"{where}: {error}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise UserError(
            "The architecture file is not a table of keys.",
            where=where,
            fix="start from recipes/architectures/pico-clip.yaml",
        )
    known = {item.name for item in fields(Architecture)}
    _check_keys(loaded, known, where)
    for key in ("vision", "text", "projection_dim", "tokenizer"):
        if key not in loaded:
            raise UserError(f"The architecture file lacks {key!r}.", where=where, fix=f"add {key}:")
    described = Architecture(**loaded)
    if described.family not in _FAMILIES:
        raise UserError(
            f"new: builds the families 'clip' and 'blip', not {described.family!r}.",
            where=f"{where}: family",
            fix="write family: clip",
        )
    if described.family == "blip" and "logit_scale_init_value" in loaded:
        raise UserError(
            "A BLIP has no logit scale; its temperature is fixed.",
            where=f"{where}: logit_scale_init_value",
            fix="leave it out",
        )
    towers = config_class(described.family)().to_dict()
    for key, known in (
        ("vision", set(towers["vision_config"])),
        ("text", set(towers["text_config"])),
        ("tokenizer", _TOKENIZER_KEYS),
        ("image", _IMAGE_KEYS),
    ):
        _check_keys(getattr(described, key), known, f"{where}: {key}")
    kind, size = described.tokenizer.get("type", "bpe"), described.tokenizer.get("vocab_size")
    if kind != "bpe" or not isinstance(size, int):
        raise UserError(
            "The tokenizer must be of type 'bpe' and have a vocab_size.",
            where=f"{where}: tokenizer",
            fix="write tokenizer: {type: bpe, vocab_size: 4000}",
        )
    return described


def load_new(
    path: str,
    *,
    corpus: Sequence[str] | None = None,
    seed: int | None = None,
    weights: bool = True,
) -> HFBackbone:
    """Build the model an architecture file describes.

    The tokenizer comes from `corpus`, else from ``tokenizer.file`` (a saved tokenizer directory
    or its ``tokenizer.json``) or ``tokenizer.corpus`` (a text file, one text per line), both
    relative to the architecture file. With none of them the backbone encodes pictures and counts
    parameters, and tokenising is an error.
    """
    described = read_architecture(path)
    tokenizer = _tokenizer(described, Path(path).expanduser().parent, corpus)
    config = _config(described, path, tokenizer)
    source = f"new:{path}"
    missing = MissingTokens(
        source, "pass corpus=[...] to load, or set tokenizer.corpus in the file"
    )
    model = make_model(config, seed=described.seed if seed is None else seed, weights=weights)
    return FAMILIES[described.family](
        model,
        source=source,
        preprocess=_preprocess(described, config.vision_config.image_size),
        tokenize=missing if tokenizer is None else make_tokens(tokenizer, config, source),
    )


def _config(described: Architecture, path: str, tokenizer: Any) -> Any:
    vision, text = _vision(described, path), _text(described, tokenizer)
    dim = described.projection_dim
    if described.family == "blip":
        # The library's own deviation of 1e-10 is meant for weights that are loaded afterwards.
        vision = {"initializer_range": 0.02, **vision}
        return make_config("blip", vision, text, image_text_hidden_size=dim)
    scale = described.logit_scale_init_value
    return make_config("clip", vision, text, projection_dim=dim, logit_scale_init_value=scale)


def _tokenizer(described: Architecture, folder: Path, corpus: Sequence[str] | None) -> Any:
    options = described.tokenizer
    limit = described.text.get("max_position_embeddings", 77)
    if corpus is None and "file" in options:
        from crossadapt.backbones.directory import read_tokenizer

        file = folder / options["file"]
        return read_tokenizer(file.parent if file.name == "tokenizer.json" else file)
    if corpus is None and "corpus" in options:
        corpus = read_corpus(folder / options["corpus"])
    if corpus is None:
        return None
    return clip_tokenizer(*train_bpe(corpus, options["vocab_size"]), limit)


def _vision(described: Architecture, path: str) -> dict[str, Any]:
    size = described.image.get("size", described.vision.get("image_size", 224))
    if described.vision.get("image_size", size) != size:
        raise UserError(
            f"image.size {size} and vision.image_size {described.vision['image_size']} differ.",
            where=path,
            fix="give one of them",
        )
    return {**described.vision, "image_size": size, "projection_dim": described.projection_dim}


def _text(described: Architecture, tokenizer: Any) -> dict[str, Any]:
    # Without a tokenizer the layout is still known: start and end are the last two entries.
    size = described.tokenizer["vocab_size"] if tokenizer is None else len(tokenizer)
    start, end = size - 2, size - 1
    if tokenizer is not None:
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return {
        **described.text,
        "vocab_size": size,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "projection_dim": described.projection_dim,
    }


def _preprocess(described: Architecture, size: int) -> ImagePreprocess:
    mean = tuple(described.image.get("mean", CLIP_MEAN))
    std = tuple(described.image.get("std", CLIP_STD))
    square = (size, size)
    # BLIP's own preparation squeezes a picture into the square, CLIP's cuts one out.
    if described.family == "blip":
        return ImagePreprocess(mean, std, resize=square)
    return ImagePreprocess(mean, std, shortest_edge=size, crop=square)


def _check_keys(given: Any, known: set[str], where: str) -> None:
    if not isinstance(given, Mapping):
        raise UserError(f"Expected a table of keys, got {given!r}.", where=where)
    for key in given:
        if key not in known:
            raise UserError(f"Unknown key {key!r}.", where=where, fix=did_you_mean(str(key), known))
