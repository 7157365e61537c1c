"""open_clip models built from a configuration: checked, described, wrapped as backbones."""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import nn

from crossadapt.backbones.open_clip import BidirectionalOpenClip, OpenClipBackbone, pooled_places
from crossadapt.backbones.open_clip_library import open_clip
from crossadapt.backbones.open_clip_tokens import OpenClipTokens
from crossadapt.backbones.preprocess import CLIP_MEAN, CLIP_STD, ImagePreprocess
from crossadapt.backbones.tokenizing import MissingTokens, Tokens
from crossadapt.errors import UserError, did_you_mean

# What shapes a feature, named one by one: further keys come and go with releases of open_clip.
_VISION = (
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value"),
    *("attentional_pool", "attn_pooler_queries", "attn_pooler_heads", "no_ln_pre"),
    *("pos_embed_type", "final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs"),
)
_TEXT = (
    *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value"),
    *("eos_id", "no_causal_mask", "pool_type", "proj_bias", "proj_type"),
    *("act_kwargs", "norm_kwargs", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
)
_CUSTOM = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn")


def load_architecture(name: str, *, seed: int = 0, weights: bool = True) -> OpenClipBackbone:
    """One of open_clip's own architectures, random; its tokenizer is in the package if CLIP's.

    Raises:
        UserError: open_clip has no such architecture, or one that is not supported here.
    """
    library = open_clip()
    config = library.get_model_config(name)
    where = f"config:open_clip/{name}"
    if config is None:
        raise UserError(
            f"open_clip has no architecture {name!r}.",
            where=where,
            fix=did_you_mean(name, library.list_models()),
        )
    settings = checked_settings(config, where)
    tokens = None if settings["text_cfg"]["hf_tokenizer_name"] else byte_pairs()
    return wrapped(
        make_open_clip(settings, seed=seed, weights=weights),
        settings,
        source=where,
        preprocess=open_clip_preprocess({}, settings, where),
        tokenizer=tokens,
    )


def checked_settings(config: Any, where: str) -> dict[str, Any]:
    """A ``model_cfg`` with every default filled in, if it is of the supported kind.

    Raises:
        UserError: no model configuration, unknown keys, or towers that are not open_clip's own
            vision transformer and text transformer.
    """
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise UserError(
            "There is no open_clip model configuration.",
            where=where,
            fix="it needs model_cfg with embed_dim, vision_cfg and text_cfg",
        )
    library = open_clip()
    try:
        vision = dataclasses.asdict(library.CLIPVisionCfg(**config["vision_cfg"]))
        text = dataclasses.asdict(library.CLIPTextCfg(**config["text_cfg"]))
    except TypeError as error:
        raise UserError(
            "The open_clip model configuration is not understood.",
            where=f"{where}: {error}",
            fix="install the release of open_clip_torch that wrote it",
        ) from error
    for kind, found in _unsupported(config, vision, text).items():
        if found:
            raise UserError(
                f"open_clip models with {kind} are not supported.",
                where=where,
                fix="use one whose towers are open_clip's own transformers (ViT-B-32 and the "
                "like); SigLIP models load from their Hugging Face repositories",
            )
    bias = config.get("init_logit_bias")
    return {
        "embed_dim": config["embed_dim"],
        "quick_gelu": bool(config.get("quick_gelu", False)),
        "logit_bias": bias is not None,
        "vision_cfg": {key: vision[key] for key in _VISION},
        "text_cfg": {key: text[key] for key in _TEXT},
    }


def _unsupported(config: dict, vision: dict, text: dict) -> dict[str, bool]:
    custom = any(tower.get(key) for tower in (vision, text) for key in (*_CUSTOM, "scale_fc"))
    return {
        "a caption decoder (CoCa)": "multimodal_cfg" in config or bool(text.get("embed_cls")),
        "a timm vision tower": bool(vision.get("timm_model_name")),
        "a ResNet vision tower": isinstance(vision["layers"], (list, tuple)),
        "a Hugging Face text tower": bool(text.get("hf_model_name")),
        "attention blocks other than the standard one": custom
        or any(tower.get("block_type") == "custom" for tower in (vision, text)),
        "several pooled image vectors": isinstance(vision["attentional_pool"], str)
        or vision["pool_type"] == "none",
        "no pooling of the text": text["pool_type"] == "none",
    }


def make_open_clip(settings: dict[str, Any], *, seed: int, weights: bool) -> nn.Module:
    """open_clip's `CustomTextCLIP` with random weights from `seed`, or with none (``meta``)."""
    library = open_clip()
    build = partial(
        library.CustomTextCLIP,
        embed_dim=settings["embed_dim"],
        vision_cfg=dict(settings["vision_cfg"]),
        text_cfg=dict(settings["text_cfg"]),
        quick_gelu=settings["quick_gelu"],
        init_logit_bias=-10.0 if settings["logit_bias"] else None,
    )
    if not weights:
        with torch.device("meta"):
            return build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def wrapped(
    model: Any,
    settings: dict[str, Any],
    *,
    source: str,
    preprocess: ImagePreprocess,
    tokenizer: Any,
) -> OpenClipBackbone:
    """The backbone around a built model; without tokenizer, texts are an error that says so."""
    text = settings["text_cfg"]
    causal = not text["no_causal_mask"]
    # Only a causal tower read at the text's own end is blind to what follows.
    ends = causal and text["pool_type"] in ("argmax", "eos")
    tokens: Tokens = MissingTokens(source, "load the model from a directory with its tokenizer")
    if tokenizer is not None:
        reading = SimpleNamespace(pool_type=text["pool_type"], eos_id=text["eos_id"])
        places = partial(pooled_places, reading) if ends else None
        tokens = OpenClipTokens(tokenizer, text["context_length"], places)
    family = OpenClipBackbone if causal else BidirectionalOpenClip
    backbone = family(
        model, settings=settings, source=source, preprocess=preprocess, tokenize=tokens
    )
    if preprocess.size != backbone.image_size:
        raise UserError(
            f"Pictures are prepared at {preprocess.size}, but the model reads "
            f"{backbone.image_size}.",
            where=source,
            fix="correct preprocess_cfg.size or vision_cfg.image_size",
        )
    backbone.use_attention()
    return backbone


def open_clip_preprocess(
    config: dict[str, Any], settings: dict[str, Any], where: str
) -> ImagePreprocess:
    """Picture preparation as open_clip's ``preprocess_cfg`` describes it for evaluation.

    Raises:
        UserError: a resize mode that is not supported.
    """
    size = config.get("size", settings["vision_cfg"]["image_size"])
    height, width = (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))
    mode = config.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        raise UserError(
            f"Pictures resized by {mode!r} to {height} x {width} are not supported.",
            where=where,
            fix="resize_mode may be 'squash', or 'shortest' for square pictures",
        )
    linear = config.get("interpolation") == "bilinear"
    fit: dict[str, Any] = {"resize": (height, width)}
    if mode == "shortest":
        fit = {"shortest_edge": height, "crop": (height, width), "rounded_crop": True}
    return ImagePreprocess(
        tuple(config.get("mean") or CLIP_MEAN),
        tuple(config.get("std") or CLIP_STD),
        resample=int(Image.Resampling.BILINEAR if linear else Image.Resampling.BICUBIC),
        **fit,
    )


@lru_cache(maxsize=1)
def byte_pairs() -> Any:
    """open_clip's own tokenizer: CLIP's byte pairs, from the file inside the package."""
    return open_clip().SimpleTokenizer()


def tiny_open_clip(
    vision: dict[str, int],
    text: dict[str, int],
    *,
    image: int,
    patch: int,
    projection_dim: int,
    seed: int,
    weights: bool,
) -> OpenClipBackbone:
    """A random causal model of a few layers with open_clip's whole tokenizer, for tests.

    Args:
        vision: `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`.
        text: the same, and `max_position_embeddings`.
        image: side of its pictures in pixels.
        patch: side of a patch.
        projection_dim: size of the shared space.
        seed: of the weights.
        weights: False builds it without weights.
    """
    tokenizer = byte_pairs()
    towers = {}
    for tower, shape in (("vision", vision), ("text", text)):
        width = shape["hidden_size"]
        towers[f"{tower}_cfg"] = {
            "width": width,
            "layers": shape["num_hidden_layers"],
            "mlp_ratio": shape["intermediate_size"] / width,
        }
    heads = vision["num_attention_heads"]
    towers["vision_cfg"] |= {"image_size": image, "patch_size": patch}
    towers["vision_cfg"] |= {"head_width": vision["hidden_size"] // heads}
    towers["text_cfg"] |= {"heads": text["num_attention_heads"]}
    towers["text_cfg"] |= {"vocab_size": tokenizer.vocab_size}
    towers["text_cfg"] |= {"context_length": text["max_position_embeddings"]}
    source = "tiny:open_clip"
    settings = checked_settings({"embed_dim": projection_dim, **towers}, source)
    return wrapped(
        make_open_clip(settings, seed=seed, weights=weights),
        settings,
        source=source,
        preprocess=open_clip_preprocess({}, settings, source),
        tokenizer=tokenizer,
    )
