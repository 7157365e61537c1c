"""Every kind of source loads, and every broken one says what to fix."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from crossadapt.backbones import config_names, load, tiny
from crossadapt.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PICO = ROOT / "recipes" / "architectures" / "pico-clip.yaml"


def count(backbone) -> int:
    return sum(p.numel() for p in backbone.model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("clip-vit-base-patch32", 151_277_313),
        ("clip-vit-base-patch16", 149_620_737),
        ("clip-vit-large-patch14", 427_616_513),
        ("siglip-base-patch16-224", 203_155_970),
        ("siglip2-base-patch16-224", 375_187_970),
        # Encoders of 223,057,152 (with 197 picture tokens) and 395,266 in projections and head.
        ("blip-base-224", 223_452_418),
    ],
)
def test_true_architectures_without_weights(name, parameters):
    backbone = load(f"config:{name}", weights=False)
    assert count(backbone) == parameters
    assert backbone.device.type == "meta"
    assert backbone.preprocess.size == backbone.image_size
    assert backbone.describe()["fingerprint"] is None
    with pytest.raises(UserError, match="fingerprint"):
        _ = backbone.fingerprint
    with pytest.raises(UserError, match="no tokenizer"):
        backbone.tokenize(["a red door"])


def test_every_architecture_builds():
    for name in config_names():
        backbone = load(f"config:{name}", weights=False)
        fusion = backbone.depth("fusion") if "fusion" in backbone.towers else 0
        layers = backbone.depth("vision") + backbone.depth("text") + fusion
        assert len(backbone.sites()) == 2 + 4 * layers


def test_random_weights_come_from_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = tiny("clip"), tiny("clip"), load("tiny:clip", seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_config_source_with_a_given_tokenizer_that_does_not_fit(clip_folder):
    with pytest.raises(UserError, match="pools at"):
        load("config:clip-vit-base-patch32", weights=False, tokenizer=str(clip_folder))


def test_new_source():
    corpus = ["a red door", "two green birds", "an open door"] * 5
    backbone = load(f"new:{PICO}", corpus=corpus, seed=4)
    text = backbone.model.config.text_config
    tokenizer = backbone.tokenize.tokenizer
    assert text.eos_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    assert text.vocab_size == len(tokenizer)
    assert backbone.image_size == backbone.preprocess.size == (64, 64)
    batch = backbone.tokenize(["A red Door", "漢 " * 50])
    assert batch.ids.shape == (2, 32)
    assert backbone.encode_text(batch.ids, batch.mask).shape == (2, 256)
    assert load(f"new:{PICO}", corpus=corpus, seed=4).fingerprint == backbone.fingerprint


def test_new_source_without_texts_counts_but_does_not_tokenise():
    backbone = load(f"new:{PICO}", weights=False)
    assert 8e6 < count(backbone) < 11e6
    with pytest.raises(UserError, match="no tokenizer"):
        backbone.tokenize(["a red door"])


def test_new_source_reads_a_corpus_or_a_tokenizer_beside_the_file(tmp_path, clip_folder):
    description = """
        family: clip
        projection_dim: 8
        vision: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, patch_size: 8,
                 image_size: 32, intermediate_size: 8}
        text: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1,
               intermediate_size: 8, max_position_embeddings: 16}
        tokenizer: {type: bpe, vocab_size: 600, %s}
    """
    (tmp_path / "words.txt").write_text("a red door\n\ntwo birds\n")
    (tmp_path / "a.yaml").write_text(description % "corpus: words.txt")
    assert load(f"new:{tmp_path}/a.yaml").tokenize(["a bird"]).ids[0, 0] >= 512
    (tmp_path / "b.yaml").write_text(description % f"file: {clip_folder}/tokenizer.json")
    expected = load(str(clip_folder)).tokenize(["a bird"]).ids
    assert torch.equal(load(f"new:{tmp_path}/b.yaml").tokenize(["a bird"]).ids, expected)
    (tmp_path / "c.yaml").write_text(description % "corpus: absent.txt")
    with pytest.raises(UserError, match="corpus"):
        load(f"new:{tmp_path}/c.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visoin": {}}, "did you mean 'vision'"),
        ({"family": "siglip"}, "family"),
        ({"tokenizer": {"type": "words"}}, "bpe"),
        ({"tokenizer": {"vocab_size": 600, "copus": ""}}, "did you mean 'corpus'"),
        ({"image": {"size": 32}}, "differ"),
        ({"vision": {"hidden_sise": 4}}, "did you mean 'hidden_size'"),
        ({"vision": {"hidden_size": 7, "num_attention_heads": 2}}, "not valid"),
        ({"vision": None}, "table of keys"),
    ],
)
def test_new_source_refuses_mistakes(tmp_path, change, message):
    right = {
        "vision": {"image_size": 64},
        "text": {},
        "projection_dim": 8,
        "tokenizer": {"vocab_size": 600},
    }
    (tmp_path / "a.json").write_text(json.dumps(right | change))
    with pytest.raises(UserError, match=message):
        load(f"new:{tmp_path}/a.json", weights=False)


@pytest.mark.parametrize("content", ["- a list", "{broken", "family: clip"])
def test_new_source_refuses_what_is_no_description(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(UserError, match="architecture file"):
        load(f"new:{tmp_path}/a.yaml")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "does not exist"),
        ("./no/where", "does not exist"),
        ("a/b/c", "does not exist"),
        ("openai/clip-vit-base-patch32", "hub repository"),
        ("pico-clop", "pico-clip"),
        ("config:clip-vit-base-patch3", "clip-vit-base-patch32"),
        ("tiny:flava", "family"),
        ("new:absent.yaml", "cannot be read"),
        (str(PICO), "not a file"),
        (str(ROOT / "recipes"), "config.json"),
    ],
)
def test_sources_that_do_not_exist(source, message):
    with pytest.raises(UserError, match=message):
        load(source)


def test_a_corpus_is_for_new_sources_only():
    with pytest.raises(UserError, match="corpus"):
        load("tiny:clip", corpus=["a"])


def edit(folder: Path, file: str, **changes) -> None:
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "holds an adapter",
    ),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "other model": (lambda f: edit(f, "config.json", model_type="bert"), "bert"),
    "variable resolution": (lambda f: edit(f, "config.json", model_type="siglip2"), "resolution"),
    "bad config": (lambda f: edit(f, "config.json", vision_config=3), "configuration"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "truncated": (lambda f: truncate(f / "model.safetensors"), "weights cannot be read"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer"),
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "image processor"),
    "other size": (
        lambda f: edit(f, "preprocessor_config.json", size={"height": 16, "width": 16}),
        "makes pictures of",
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_directories(siglip_folder, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(siglip_folder, folder)
    break_it, message = BROKEN[damage]
    break_it(folder)
    with pytest.raises(UserError, match=message):
        load(str(folder))


def test_weights_of_another_architecture_or_with_holes(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "text_projection.weight"},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match=r"lack 1 tensors.*text_projection.weight"):
        load(str(folder))
    weights["text_projection.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="cannot be read"):
        load(str(folder))


def test_old_weight_files_are_read_without_running_code(clip_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    expected = load(str(folder)).fingerprint
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert load(str(folder)).fingerprint == expected
    torch.save({"logit_scale": Path("code")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        load(str(folder))


def test_dtype(clip_folder):
    backbone = load(str(clip_folder), dtype="bfloat16")
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    assert load(str(clip_folder), weights=False).device.type == "meta"
    with pytest.raises(UserError, match="int8"):
        load(str(clip_folder), dtype="int8")


def test_loading_under_inference_mode_gives_trainable_tensors():
    with torch.inference_mode():
        backbone = load("tiny:clip")
    assert not any(p.is_inference() for p in backbone.model.parameters())


def test_importing_does_not_import_torch():
    code = (
        "import sys, crossadapt, crossadapt.backbones; "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]
