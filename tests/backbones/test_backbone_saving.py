"""A saved backbone is an ordinary Hugging Face directory, whole or not at all; fingerprints."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoProcessor, AutoTokenizer, CLIPModel

from crossadapt.backbones import load, save_backbone, tiny
from crossadapt.errors import UserError

TEXTS = ["a red door", "two green birds"]


def test_any_hugging_face_tool_loads_it(tmp_path):
    backbone = tiny("clip")
    folder = save_backbone(backbone, tmp_path / "new" / "model", dtype="float32")
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]
    processor = AutoProcessor.from_pretrained(folder)
    model = CLIPModel.from_pretrained(folder).eval()
    image = Image.linear_gradient("L").convert("RGB").resize((50, 70))
    inputs = processor(text=TEXTS, images=image, return_tensors="pt", padding="longest")
    outputs = model(**inputs)
    normal = nn.functional.normalize
    mine = normal(backbone.encode_image(backbone.preprocess(image)[None]))
    torch.testing.assert_close(mine, outputs.image_embeds, atol=1e-5, rtol=0)
    ids = backbone.tokenize(TEXTS).ids
    torch.testing.assert_close(
        normal(backbone.encode_text(ids)), outputs.text_embeds, atol=1e-5, rtol=0
    )
    assert torch.equal(
        AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")["input_ids"],
        backbone.tokenize(TEXTS[:1]).ids,
    )


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_float32_round_trip_keeps_the_fingerprint(family, tmp_path):
    backbone = tiny(family)
    save_backbone(backbone, tmp_path / "model", dtype="float32")
    again = load(str(tmp_path / "model"))
    assert again.fingerprint == backbone.fingerprint
    assert load(str(tmp_path / "model")).fingerprint == again.fingerprint
    assert again.preprocess == backbone.preprocess


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_compute_in_float32(dtype, tmp_path):
    backbone = tiny("clip")
    save_backbone(backbone, tmp_path / "model", dtype=dtype)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {getattr(torch, dtype)}
    again = load(str(tmp_path / "model"))
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    ids = backbone.tokenize(TEXTS).ids
    torch.testing.assert_close(
        again.encode_text(ids), backbone.encode_text(ids), atol=0.05, rtol=0.05
    )


def test_saving_over_a_folder_keeps_its_other_files(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("card")
    save_backbone(tiny("clip"), tmp_path / "model")
    save_backbone(tiny("clip", seed=1), tmp_path / "model", dtype="float32")
    assert (tmp_path / "model" / "README.md").read_text() == "card"
    assert load(str(tmp_path / "model")).fingerprint == tiny("clip", seed=1).fingerprint


def test_a_full_disk_leaves_the_earlier_files(tmp_path, monkeypatch):
    folder = save_backbone(tiny("clip"), tmp_path / "model", dtype="float32")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    second = tiny("clip", seed=1)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(second.tokenize.tokenizer.__class__, "save_pretrained", full)
    with pytest.raises(UserError, match="No space left"):
        save_backbone(second, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(UserError, match="dtype"):
        save_backbone(tiny("clip"), tmp_path / "a", dtype="int8")
    with pytest.raises(UserError, match="without weights"):
        save_backbone(tiny("clip", weights=False), tmp_path / "a")
    broken = tiny("clip")
    with torch.no_grad():
        broken.model.text_projection.weight[0, 0] = 1e6
    with pytest.raises(UserError, match=r"text_projection.weight"):
        save_backbone(broken, tmp_path / "a")
    blind = load("tiny:clip")
    blind.tokenize = load("config:clip-vit-base-patch32", weights=False).tokenize
    with pytest.raises(UserError, match="tokenizer"):
        save_backbone(blind, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_fingerprint_sees_what_shapes_features_and_nothing_else(clip_folder):
    backbone = load(str(clip_folder))
    first = backbone.fingerprint
    backbone.adapters["x"] = nn.Linear(2, 2)
    backbone.override_source = lambda: {"logit_scale": torch.tensor(1.0)}
    backbone.use_attention("sdpa")
    backbone.tokenize(["a red door " * 30])
    assert backbone.fingerprint == first
    assert load(str(clip_folder), attention="eager").fingerprint == first
    assert tiny("clip", vision_layers=3).fingerprint != tiny("clip").fingerprint
    with torch.no_grad():
        backbone.model.text_projection.weight[0, 0] += 1
    assert backbone.fingerprint != first


def test_describe_is_complete_and_plain(clip_folder):
    import json

    described = load(str(clip_folder)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["towers"]["vision"] == {"width": 24, "depth": 2}
    assert described["source"] == str(clip_folder)
