"""BLIP behind the contract: three towers, equal to the library's own forward pass."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from tests.adapting import batch
from torch.nn import functional
from transformers import BlipForImageTextRetrieval

from crossadapt import load
from crossadapt.backbones import save_backbone, tiny
from crossadapt.backbones.blip import MATCH
from crossadapt.backbones.tokenizing import make_tokens
from crossadapt.errors import UserError


@pytest.fixture
def blip():
    return tiny("blip")


def test_features_and_matches_are_those_of_the_library(blip_folder):
    """With [CLS] in front as the library has it; BLIP's own training puts [ENC] there."""
    mine, reference = load(str(blip_folder)), BlipForImageTextRetrieval.from_pretrained(blip_folder)
    reference.eval()
    pixels, tokens = batch(mine)
    with torch.no_grad():
        inputs = {"pixel_values": pixels, "attention_mask": tokens.mask.long()}
        cosines = reference(input_ids=tokens.ids, use_itm_head=False, **inputs).itm_score
        images = functional.normalize(mine.encode_image(pixels), dim=-1)
        texts = functional.normalize(mine.encode_text(tokens.ids, tokens.mask), dim=-1)
        torch.testing.assert_close(images @ texts.T, cosines)
        ids = tokens.ids.clone()
        ids[:, 0] = mine.tokenize.fusion_start
        logits = reference(input_ids=ids, **inputs).itm_score
        seen = mine.encode_image_tokens(pixels)
        torch.testing.assert_close(mine.match(tokens.ids, tokens.mask, seen), logits)
        mine.tokenize.fusion_start = None
        logits = reference(input_ids=tokens.ids, **inputs).itm_score
        torch.testing.assert_close(mine.match(tokens.ids, tokens.mask, seen), logits)
    assert torch.equal(mine.pool_tokens(seen), mine.encode_image(pixels))


def test_texts_cut_to_their_length_equal_padded_ones_in_both_towers(blip):
    pixels, tokens = batch(blip)
    seen = blip.encode_image_tokens(pixels)
    wide = functional.pad(tokens.ids, (0, 7), value=blip.tokenize.pad)
    mask = functional.pad(tokens.mask, (0, 7))
    assert not tokens.mask.all()
    torch.testing.assert_close(
        blip.encode_text(wide, mask), blip.encode_text(tokens.ids, tokens.mask)
    )
    torch.testing.assert_close(
        blip.match(wide, mask, seen), blip.match(tokens.ids, tokens.mask, seen)
    )


def test_clips_are_the_tokens_of_their_frames(blip):
    tokens = blip.tokenize(["a red door", "two birds"])
    frames = torch.randn(2, 3, 3, 32, 32)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    seen = blip.encode_frame_tokens(frames, mask)
    assert seen.shape == (2, 3, 17, 24)
    assert torch.equal(seen[1, 2], torch.zeros(17, 24))
    torch.testing.assert_close(seen[0, 1], blip.encode_image_tokens(frames[0, 1:2])[0])
    found = blip.match(tokens.ids, tokens.mask, seen, token_mask=mask)
    short = blip.match(tokens.ids[1:], tokens.mask[1:], seen[1:, :2])
    torch.testing.assert_close(found[1:], short)
    flat = blip.match(tokens.ids[:1], tokens.mask[:1], seen[:1].flatten(1, 2))
    torch.testing.assert_close(found[:1], flat)


def test_three_towers(blip):
    assert blip.towers == ("vision", "text", "fusion")
    assert (blip.depth("fusion"), blip.width("fusion"), blip.tokens("fusion")) == (3, 16, 32)
    assert float(blip.logit_scale.exp()) == pytest.approx(1 / 0.07)
    hidden = blip.encode_fusion(*pair(blip))
    assert hidden.shape == (3, blip.tokenize(["a red door"] * 3).ids.shape[1], 16)
    assert blip.match(*pair(blip)).shape == (3, 2)
    assert MATCH == 1
    names = [site.name for site in blip.sites() if site.tower == "fusion"]
    kinds = ("cross-attention", "key", "value", "residual")
    assert names == [f"fusion.{layer}.{kind}" for layer in range(3) for kind in kinds]


def pair(blip):
    tokens = blip.tokenize(["a red door"] * 3)
    return tokens.ids, tokens.mask, blip.encode_image_tokens(batch(blip)[0])


def test_sites_are_what_they_say(blip):
    """The residual sites read behind the attention and add behind the layer, by the library."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name, first):
        def hook(_module, inputs, output):
            found = inputs if first == "input" else output
            seen[name] = found[0] if isinstance(found, tuple) else found

        return hook

    for site in blip.sites():
        module = blip.model.get_submodule(site.path)
        module.register_forward_hook(keep(site.name, "output"))
        if site.source:
            source = blip.model.get_submodule(site.source)
            source.register_forward_hook(keep(f"{site.name}:source", site.side))
    blip.encode_fusion(*pair(blip))
    for site in blip.sites():
        assert seen[site.name].shape[-1] == site.width
        if site.source:
            assert seen[f"{site.name}:source"].shape[-1] == (site.read_width or site.width)
    layer = blip.model.text_encoder.encoder.layer[1]
    a, c = seen["text.1.residual:source"], seen["fusion.1.residual:source"]
    attention = seen["fusion.1.cross-attention"]
    torch.testing.assert_close(layer.crossattention.output.LayerNorm(attention + a), c)
    norm = layer.output.LayerNorm
    torch.testing.assert_close(norm(seen["text.1.mlp"] + c), seen["text.1.block"])
    vision = blip.model.vision_model.encoder.layers[1]
    h = seen["vision.1.residual:source"]
    torch.testing.assert_close(h + vision.mlp(vision.layer_norm2(h)), seen["vision.1.block"])


def test_marker_of_the_fusion_tower(blip):
    tokenizer, config = blip.tokenize.tokenizer, blip.model.config
    assert blip.tokenize.fusion_start == tokenizer.get_vocab()["[ENC]"]
    # Converted checkpoints: two more rows than the tokenizer knows, the last is [ENC].
    without = type(tokenizer)(tokenizer_object=plain_backend(tokenizer), pad_token="[PAD]")
    assert len(without) == config.text_config.vocab_size - 2
    assert make_tokens(without, config, "x").fusion_start == config.text_config.vocab_size - 1
    config.text_config.vocab_size -= 2
    assert make_tokens(without, config, "x").fusion_start is None
    config.text_config.vocab_size -= 1
    with pytest.raises(UserError, match="does not fit"):
        make_tokens(without, config, "x")


def plain_backend(tokenizer):
    from tokenizers import Tokenizer

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("[DEC]", "[ENC]"):
        del described["model"]["vocab"][name]
    names = ("[DEC]", "[ENC]")
    described["added_tokens"] = [t for t in described["added_tokens"] if t["content"] not in names]
    return Tokenizer.from_str(json.dumps(described))


def test_other_blip_heads_are_refused(blip_folder, tmp_path):
    shutil.copytree(blip_folder, tmp_path / "captions")
    path = tmp_path / "captions" / "config.json"
    values = json.loads(path.read_text())
    values["architectures"] = ["BlipForConditionalGeneration"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="no matching head"):
        load(str(tmp_path / "captions"))


def test_saved_and_loaded_is_the_same(blip, tmp_path):
    folder = save_backbone(blip, tmp_path / "blip", dtype="float32")
    again = load(str(folder))
    assert again.fingerprint == blip.fingerprint
    assert torch.equal(again.match(*pair(again)), blip.match(*pair(blip)))
    again.tokenize.fusion_start = None
    again._fingerprint = type(again._fingerprint)()
    assert again.fingerprint != blip.fingerprint


def test_only_eager_attention(blip):
    assert blip.use_attention("auto") == dict.fromkeys(blip.towers, "eager")
    with pytest.raises(UserError, match="sdpa"):
        blip.use_attention("sdpa")


def test_new_blip_from_a_file(tmp_path):
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    described = {
        "family": "blip",
        "projection_dim": 8,
        "vision": {**tower, "patch_size": 8},
        "text": {**tower, "max_position_embeddings": 16},
        "tokenizer": {"type": "bpe", "vocab_size": 560},
        "image": {"size": 16},
    }
    path = tmp_path / "blip.yaml"
    path.write_text(yaml.safe_dump(described))
    made = load(f"new:{path}", corpus=["a red door", "two green birds"])
    assert (made.family, made.embedding_dim, made.image_size) == ("blip", 8, (16, 16))
    assert made.tokenize.fusion_start is None
    assert made.preprocess.resize == (16, 16)
    # The library's own vision start, 1e-10, would give every picture the same feature.
    images = made.encode_image(torch.randn(2, 3, 16, 16))
    assert (images[0] - images[1]).abs().max() > 1e-4
    path.write_text(yaml.safe_dump(described | {"logit_scale_init_value": 3.0}))
    with pytest.raises(UserError, match="temperature"):
        load(f"new:{path}")
