"""The same weights as an open_clip model and as a Hugging Face one: one answer, adapted or not."""

from __future__ import annotations

import pytest
import torch
from tests.adapting import features, train

from crossadapt.adapters.attach import attach
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import tiny
from crossadapt.backbones.building import make_config as hugging_face_config
from crossadapt.backbones.building import make_model
from crossadapt.backbones.clip import CLIPBackbone
from crossadapt.backbones.open_clip_building import (
    checked_settings,
    make_open_clip,
    wrapped,
)

pytest.importorskip("ftfy", reason="open_clip is not installed")

# open_clip's names in a block, and Hugging Face's.
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
STEM = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "text.ln_final": "text_model.final_layer_norm",
}
PROJECTIONS = {
    "visual.proj": "visual_projection.weight",
    "text.text_projection": "text_projection.weight",
}


def translated(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's tensors under Hugging Face's names."""
    out = {theirs: state[ours] for ours, theirs in STEM.items()}
    out |= {theirs: state[ours].T for ours, theirs in PROJECTIONS.items()}
    for kind in ("weight", "bias"):
        out |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for ours, theirs in NORMS.items()}
    for name, tensor in state.items():
        root, _, rest = name.partition(".transformer.resblocks.")
        if not rest:
            continue
        layer, _, leaf = rest.partition(".")
        tower = "vision" if root == "visual" else "text"
        block = f"{tower}_model.encoder.layers.{layer}"
        module, _, kind = leaf.rpartition(".")
        if module in BLOCK:
            out[f"{block}.{BLOCK[module]}.{kind}"] = tensor
        else:
            kind = kind.removeprefix("in_proj_")
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{block}.self_attn.{part}_proj.{kind}"] = rows
    return out


@pytest.fixture
def pair():
    small = tiny("open_clip", seed=4)
    settings = {**small.settings, "quick_gelu": True}
    mine = wrapped(
        make_open_clip(checked_settings(settings, "memory"), seed=4, weights=True),
        settings,
        source="memory",
        preprocess=small.preprocess,
        tokenizer=small.tokenize.tokenizer,
    )
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 12}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 2, "vocab_size": 49408, "max_position_embeddings": 32}
    text |= {"projection_dim": 12, "eos_token_id": 49407}
    config = hugging_face_config("clip", vision, text, projection_dim=12)
    model = make_model(config, seed=0, weights=True)
    model.load_state_dict(translated(mine.model.state_dict()))
    theirs = CLIPBackbone(
        model, source="memory", preprocess=small.preprocess, tokenize=mine.tokenize
    )
    return mine, theirs


def equal(pair) -> None:
    mine, theirs = map(features, pair)
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cross-modal-adapter", {"r": 4, "d_s": 6}),
        ("adaptformer", {"r": 4, "dropout": 0.0}),
        ("attention-adapter", {"r": 4}),
        ("mv-adapter", {"d": 8, "frames": 2, "tied": 1, "shrink": 1}),
        ("coop", {"tokens": 4, "words": "a photo of a"}),
        ("vpt", {}),
        ("maple", {"depth": 2}),
        ("apollo", {"heads": 2}),
    ],
)
def test_a_trained_adapter_does_the_same_on_both(pair, method, options) -> None:
    """So every site is the same point of the computation, and prompts enter at the same place."""
    mine, theirs = pair
    equal(pair)
    first = attach(mine, make_config(method, options))
    second = attach(theirs, make_config(method, options))
    before = features(mine)
    train(mine, first, steps=3)
    assert not torch.allclose(features(mine)[1], before[1], atol=1e-4) or method == "vpt"
    values = dict(first.named_trained())
    assert [n for n, _ in second.named_trained()] == list(values)
    with torch.no_grad():
        for name, parameter in second.named_trained():
            parameter.copy_(values[name])
    equal(pair)
