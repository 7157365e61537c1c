"""``config:NAME``: the true shapes of published models, for counting and benchmarking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossadapt.backbones.building import FAMILIES, make_config, make_model
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.preprocess import CLIP_MEAN, CLIP_STD, ImagePreprocess
from crossadapt.backbones.tokenizing import MissingTokens, Tokens, make_tokens
from crossadapt.errors import UserError, did_you_mean


@dataclass(frozen=True)
class _Tower:
    width: int
    layers: int
    heads: int
    mlp: int

    def fields(self) -> dict[str, int]:
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp,
        }


@dataclass(frozen=True)
class _Published:
    family: str
    vision: _Tower
    text: _Tower
    image: int
    patch: int
    vocabulary: int
    positions: int
    projection: int = 0


_BASE = _Tower(768, 12, 12, 3072)
_LARGE = _Tower(1024, 24, 16, 4096)
_SO400M = _Tower(1152, 27, 16, 4304)


def _clip(vision: _Tower, text: _Tower, image: int, patch: int, projection: int) -> _Published:
    return _Published("clip", vision, text, image, patch, 49408, 77, projection)


def _blip(image: int) -> _Published:
    return _Published("blip", _BASE, _BASE, image, 16, 30524, 512, 256)


def _siglip(tower: _Tower, image: int, patch: int, vocabulary: int = 32000) -> _Published:
    return _Published("siglip", tower, tower, image, patch, vocabulary, 64)


_PUBLISHED = {
    "clip-vit-base-patch32": _clip(_BASE, _Tower(512, 12, 8, 2048), 224, 32, 512),
    "clip-vit-base-patch16": _clip(_BASE, _Tower(512, 12, 8, 2048), 224, 16, 512),
    "clip-vit-large-patch14": _clip(_LARGE, _BASE, 224, 14, 768),
    "clip-vit-large-patch14-336": _clip(_LARGE, _BASE, 336, 14, 768),
    "siglip-base-patch16-224": _siglip(_BASE, 224, 16),
    "siglip-large-patch16-256": _siglip(_LARGE, 256, 16),
    "siglip-so400m-patch14-384": _siglip(_SO400M, 384, 14),
    "siglip2-base-patch16-224": _siglip(_BASE, 224, 16, vocabulary=256000),
    "blip-base": _blip(384),
    "blip-base-224": _blip(224),
}


def config_names() -> list[str]:
    """Names that may follow ``config:``."""
    return list(_PUBLISHED)


def load_config(
    name: str, *, seed: int | None = None, weights: bool = True, tokenizer: str | None = None
) -> HFBackbone:
    """A published architecture with random float32 weights, or with none.

    There is no tokenizer unless `tokenizer` names a directory with one; a stand-in would make
    text features that look right and mean nothing.

    Raises:
        UserError: unknown name, or a tokenizer that does not fit.
    """
    if name not in _PUBLISHED:
        raise UserError(
            f"Unknown architecture {name!r}.",
            where=f"config:{name}",
            fix=did_you_mean(name, _PUBLISHED),
        )
    spec = _PUBLISHED[name]
    config = _hf_config(spec)
    source = f"config:{name}"
    tokens: Tokens = MissingTokens(
        source, "pass tokenizer=DIRECTORY to load, or load a real checkpoint"
    )
    if tokenizer is not None:
        from crossadapt.backbones.directory import read_tokenizer

        tokens = make_tokens(read_tokenizer(Path(tokenizer).expanduser()), config, tokenizer)
    return FAMILIES[spec.family](
        make_model(config, seed=seed or 0, weights=weights),
        source=source,
        preprocess=published_preprocess(spec.family, spec.image),
        tokenize=tokens,
    )


def published_preprocess(family: str, size: int) -> ImagePreprocess:
    """Picture preparation of the released checkpoints of a family, at `size` pixels."""
    if family == "blip":
        return ImagePreprocess(CLIP_MEAN, CLIP_STD, resize=(size, size))
    if family == "clip":
        return ImagePreprocess(CLIP_MEAN, CLIP_STD, shortest_edge=size, crop=(size, size))
    return ImagePreprocess((0.5,) * 3, (0.5,) * 3, resize=(size, size))


def _hf_config(spec: _Published) -> object:
    vision = {**spec.vision.fields(), "image_size": spec.image, "patch_size": spec.patch}
    text = {
        **spec.text.fields(),
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.positions,
    }
    if spec.family == "siglip":
        # The defaults of the configuration class are CLIP's ids, outside this vocabulary.
        return make_config(
            "siglip", vision, {**text, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
        )
    if spec.family == "blip":
        return make_config("blip", vision, text, image_text_hidden_size=spec.projection)
    shared = {"projection_dim": spec.projection}
    return make_config("clip", {**vision, **shared}, {**text, **shared}, **shared)
