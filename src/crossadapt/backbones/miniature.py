"""Tiny random models with a working tokenizer and preprocessing, for tests and examples."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from crossadapt.backbones.architectures import published_preprocess
from crossadapt.backbones.building import FAMILIES, make_config, make_model
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.tokenizing import make_tokens
from crossadapt.errors import UserError, did_you_mean

_IMAGE, _PATCH = 32, 8
_POSITIONS = {"clip": 32, "siglip": 24, "open_clip": 32, "blip": 32}
_CORPUS = (
    "a photo of a red door",
    "a drawing of two green birds on a blue boat",
    "the small white house with a yellow flower",
)


def tiny(
    family: str = "clip",
    *,
    vision_layers: int = 2,
    text_layers: int = 3,
    vision_width: int = 24,
    text_width: int = 16,
    projection_dim: int = 12,
    heads: int = 2,
    seed: int = 0,
    weights: bool = True,
) -> HFBackbone:
    """A random backbone of a few thousand parameters that takes real pictures and real texts.

    Depths and widths of the towers differ on purpose. Pictures are 32 x 32 with patches of 8.

    Args:
        family: ``clip``, ``siglip``, ``blip`` or ``open_clip`` (with CLIP's whole vocabulary of
            49,408, so of some hundred thousand parameters).
        vision_layers: depth of the vision tower.
        text_layers: depth of the text tower.
        vision_width: hidden size of the vision tower, a multiple of `heads`.
        text_width: hidden size of the text tower, a multiple of `heads`.
        projection_dim: size of the shared space of CLIP and BLIP; SigLIP's is `vision_width`.
        heads: attention heads of both towers.
        seed: of the weights; the same seed gives the same model.
        weights: False builds it without weights.
    """
    if family not in _POSITIONS:
        raise UserError(
            f"Unknown family {family!r}.",
            where=f"tiny:{family}",
            fix=did_you_mean(family, _POSITIONS),
        )
    if family == "open_clip":
        from crossadapt.backbones.open_clip_building import tiny_open_clip

        positions = {"max_position_embeddings": _POSITIONS[family]}
        return tiny_open_clip(
            _tower(vision_layers, vision_width, heads),
            _tower(text_layers, text_width, heads) | positions,
            image=_IMAGE,
            patch=_PATCH,
            projection_dim=projection_dim,
            seed=seed,
            weights=weights,
        )
    tokenizer = {"clip": _clip_tokens, "siglip": _siglip_tokens, "blip": _blip_tokens}[family]()
    vision: dict[str, Any] = {
        **_tower(vision_layers, vision_width, heads),
        "image_size": _IMAGE,
    }
    vision["patch_size"] = _PATCH
    text = {
        **_tower(text_layers, text_width, heads),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _POSITIONS[family],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "clip":
        shared = {"projection_dim": projection_dim}
        config = make_config("clip", {**vision, **shared}, {**text, **shared}, **shared)
    elif family == "blip":
        vision["initializer_range"] = 0.02  # the library's default of 1e-10 is meant for loading
        config = make_config("blip", vision, text, image_text_hidden_size=projection_dim)
    else:
        config = make_config("siglip", vision, {**text, "projection_size": vision_width})
    backbone = FAMILIES[family](
        make_model(config, seed=seed, weights=weights),
        source=f"tiny:{family}",
        preprocess=published_preprocess(family, _IMAGE),
        tokenize=make_tokens(tokenizer, config, f"tiny:{family}"),
    )
    backbone.use_attention("auto")
    return backbone


def _tower(layers: int, width: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


@lru_cache(maxsize=1)
def _clip_tokens() -> Any:
    from crossadapt.backbones.bpe import SMALLEST, clip_tokenizer, train_bpe

    return clip_tokenizer(*train_bpe(_CORPUS, SMALLEST + 64), _POSITIONS["clip"])


@lru_cache(maxsize=1)
def _siglip_tokens() -> Any:
    """Bytes and an end token, padded with that token as SigLIP's own tokenizer does."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    end = "</s>"
    vocabulary = {token: index for index, token in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary[end] = len(vocabulary)
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        pad_token=end,
        model_max_length=_POSITIONS["siglip"],
    )


@lru_cache(maxsize=1)
def _blip_tokens() -> Any:
    """Single letters under BERT's rules, with BLIP's two further tokens."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    tokens = [*special, *letters, *(f"##{letter}" for letter in letters), "[DEC]", "[ENC]"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="[DEC]",
        eos_token="[SEP]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=_POSITIONS["blip"],
    )
