"""open_clip models: the library's own code gives the same features, texts and pictures."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import is_torchvision_available

from crossadapt.adapters.attach import attach
from crossadapt.adapters.merge import merge
from crossadapt.adapters.registry import make_config
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import load, open_clip_library, save_backbone, tiny
from crossadapt.backbones.open_clip_building import (
    byte_pairs,
    checked_settings,
    make_open_clip,
    open_clip_preprocess,
    wrapped,
)
from crossadapt.backbones.open_clip_library import open_clip
from crossadapt.errors import UserError
from crossadapt.tasks.encode import training_features

pytest.importorskip("ftfy", reason="open_clip is not installed")

TEXTS = [
    "a red door",
    "two green birds on a blue boat",
    "it's 3.14, \u201cquoted\u201d &amp; na\u00efve",
]
VISION = {"width": 24, "layers": 1, "head_width": 12, "patch_size": 8, "image_size": 32}
TEXT = {"width": 16, "layers": 2, "heads": 2, "context_length": 24, "vocab_size": 49408}
SIZE = {"vision_cfg": VISION}
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}


def build(vision=(), text=(), **config):
    """A backbone from a small configuration with these changes."""
    towers = {"vision_cfg": {**VISION, **dict(vision)}, "text_cfg": {**TEXT, **dict(text)}}
    settings = checked_settings({"embed_dim": 12, **towers, **config}, "memory")
    return wrapped(
        make_open_clip(settings, seed=0, weights=True),
        settings,
        source="memory",
        preprocess=open_clip_preprocess({}, settings, "memory"),
        tokenizer=byte_pairs(),
    )


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def padded(backbone) -> torch.Tensor:
    """The texts as open_clip's own tokenizer gives them, at full length."""
    return open_clip().SimpleTokenizer()(TEXTS, context_length=backbone.tokens("text"))


def test_the_library_is_real_and_nothing_is_left_of_the_stand_in() -> None:
    library = open_clip()
    assert library.CustomTextCLIP.__module__ == "open_clip.model"
    assert isinstance(tiny("open_clip").model, library.CustomTextCLIP)
    if "torchvision" not in sys.modules:
        with pytest.raises(UserError, match="torchvision cannot be imported"):
            library.image_transform(32, is_train=False)
    kinds = {type(module).__module__ for module in list(sys.modules.values())}
    assert not [kind for kind in kinds if kind.startswith("crossadapt")]


def test_the_stand_in_is_seen_by_nobody_afterwards(monkeypatch) -> None:
    modules = {n for n in sys.modules if n.split(".")[0] in ("torchvision", "timm")}
    real = importlib.util.find_spec("torchvision") is not None
    believed = is_torchvision_available()
    with open_clip_library._stand_in():
        import torchvision.transforms.functional
        from torchvision.transforms import InterpolationMode

        assert torchvision.__name__ == "torchvision"
        with pytest.raises(ImportError):
            import timm  # noqa: F401  (it would take the names for torchvision's)
        assert InterpolationMode.BICUBIC.__name__.endswith("InterpolationMode.BICUBIC")
        with pytest.raises(UserError, match=r"torchvision.transforms.functional.resize is not"):
            torchvision.transforms.functional.resize(None, 3)
        assert is_torchvision_available() == believed
    assert {n for n in sys.modules if n.split(".")[0] in ("torchvision", "timm")} == modules
    assert (importlib.util.find_spec("torchvision") is not None) == real


def test_without_open_clip_the_error_says_what_to_install(monkeypatch) -> None:
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [n for n in sys.modules if n.split(".")[0] == "open_clip"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(open_clip_library.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"crossadapt\[openclip\]"):
        open_clip()


@pytest.mark.parametrize(
    ("vision", "text", "config"),
    [
        ({}, {}, {}),
        ({}, {}, {"quick_gelu": True}),
        ({"pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True}, {}, {}),
        ({"ls_init_value": 0.1}, {"ls_init_value": 0.1, "pool_type": "eos", "eos_id": 49407}, {}),
        ({"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}, {}, {}),
        ({}, {"pool_type": "last"}, {}),
        ({}, SIGLIP, {"init_logit_bias": -10}),
        ({}, {**SIGLIP, "pool_type": "first", "proj_bias": False}, {}),
    ],
    ids=["clip", "quick", "average", "scaled-eos", "pooler", "last", "siglip", "first"],
)
def test_features_equal_the_librarys_own(vision, text, config) -> None:
    backbone = build(vision, text, **config)
    tokens = backbone.tokenize(TEXTS)
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(pixels()), backbone.model.encode_image(pixels()))
        mine = backbone.encode_text(tokens.ids, tokens.mask)
        torch.testing.assert_close(
            mine, backbone.model.encode_text(padded(backbone)), atol=1e-6, rtol=0
        )
    assert mine.shape == (3, 12)
    assert (backbone.logit_bias is None) == ("init_logit_bias" not in config)


def test_a_causal_text_is_cut_to_its_real_length_and_another_is_not() -> None:
    tokens = build().tokenize(TEXTS)
    lengths = tokens.mask.sum(1)
    assert tokens.ids.shape[1] == lengths.max() < TEXT["context_length"]
    assert lengths[0] == 5  # start, three words, end
    for text in (SIGLIP, {"pool_type": "last"}):
        full = build(text=text).tokenize(TEXTS)
        assert full.ids.shape == (3, TEXT["context_length"])
        assert full.mask.all()


def test_why_a_text_tower_that_sees_padding_is_not_cut() -> None:
    """The features of a shorter input really differ, so cutting would change the model."""
    backbone = build(text=SIGLIP)
    ids = backbone.tokenize(TEXTS).ids
    with torch.no_grad():
        whole, cut = backbone.encode_text(ids), backbone.encode_text(ids[:, :20])
    assert not torch.allclose(whole, cut, atol=1e-3)


def test_texts_are_tokenised_as_the_library_does() -> None:
    backbone = tiny("open_clip")
    long = "word " * 50
    reference = open_clip().SimpleTokenizer()([*TEXTS, long], context_length=32)
    tokens = backbone.tokenize([*TEXTS, long])
    assert torch.equal(tokens.ids, reference)
    assert tokens.ids[3, -1] == backbone.tokenize.tokenizer.eot_token_id
    assert backbone.tokenize.words("a red door") == tokens.ids[0, 1:4].tolist()
    for nothing in ([], "a text", [1]):
        with pytest.raises(UserError, match="list of texts"):
            backbone.tokenize(nothing)


@pytest.mark.parametrize("text", [{}, SIGLIP], ids=["causal", "padded"])
def test_room_for_prompts(text) -> None:
    tokens = build(text=text).tokenize
    ids = tokens(["a red door", "word " * 50]).ids
    placed = tokens.make_room(ids, 4)
    assert placed.shape == (2, 24)
    assert (placed[:, :5] == 49406).all()
    assert placed[0, 5:9].tolist() == [*tokens.words("a red door"), 49407]
    assert placed[1, -1] == 49407
    assert ((placed == 49407).sum(1) == 1).all()


# What open_clip 3.3.0 makes of these pictures with torchvision 0.28: mean, and one value per
# channel. 67 and 33 pixels leave an odd number of columns to cut.
REFERENCE = {
    ("shortest", (33, 47)): [0.16349, -1.52949, 0.45404, 0.39683],
    ("shortest", (101, 64)): [0.18762, -0.21563, 0.60412, 0.97985],
    ("shortest", (67, 32)): [0.19965, 0.67487, -1.52698, 0.04133],
    ("shortest", (35, 32)): [0.22277, -1.66088, 0.06384, 0.69545],
    ("squash", (33, 47)): [-0.00658, 0.34118, 0.12941, -0.91373],
    ("squash", (67, 32)): [-0.00436, -0.18431, 0.02745, -0.07451],
    ("bilinear", (33, 47)): [0.16404, -1.4273, 0.48406, 0.53903],
    ("bilinear", (101, 64)): [0.18826, -0.24483, 0.48406, 0.99407],
}
CONFIGS = {
    "shortest": {},
    "squash": {"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3},
    "bilinear": {"interpolation": "bilinear"},
}


@pytest.mark.parametrize(("mode", "size"), REFERENCE)
def test_pictures_equal_the_librarys_own(mode, size) -> None:
    width, height = size
    generator = np.random.default_rng(width * 1000 + height)
    noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    prepare = open_clip_preprocess({"size": 32, **CONFIGS[mode]}, SIZE, "memory")
    out = prepare(image)
    found = [out.mean(), out[0, 0, 0], out[1, 16, 16], out[2, 31, 31]]
    torch.testing.assert_close(
        torch.stack(found), torch.tensor(REFERENCE[mode, size]), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize(
    "config", [{"resize_mode": "longest"}, {"size": [32, 48]}, {"resize_mode": "stretch"}]
)
def test_other_ways_to_resize_are_refused(config) -> None:
    with pytest.raises(UserError, match="not supported"):
        open_clip_preprocess({"size": 32, **config}, SIZE, "memory")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}}, "timm vision"),
        ({"vision_cfg": {**VISION, "layers": [3, 4, 6, 3]}}, "ResNet"),
        ({"vision_cfg": {**VISION, "attentional_pool": "parallel"}}, "several pooled"),
        ({"vision_cfg": {**VISION, "qk_norm": True}}, "attention blocks"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "Hugging Face text tower"),
        ({"text_cfg": {**TEXT, "embed_cls": True}}, "CoCa"),
        ({"multimodal_cfg": {}}, "CoCa"),
        ({"text_cfg": {**TEXT, "pool_type": "none"}}, "no pooling"),
        ({"vision_cfg": {**VISION, "no_such_option": 1}}, "no_such_option"),
        ({"embed_dim": None, "vision_cfg": None}, "not understood"),
    ],
)
def test_unsupported_models_are_refused_by_name(change, message) -> None:
    config = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT, **change}
    with pytest.raises(UserError, match=message):
        checked_settings(config, "memory")
    with pytest.raises(UserError, match="no open_clip model configuration"):
        checked_settings({"embed_dim": 12}, "memory")


def test_eager_attention_is_refused() -> None:
    with pytest.raises(UserError, match="eager"):
        load("tiny:open_clip", attention="eager")
    assert load("tiny:open_clip", attention="sdpa").attention == {"vision": "sdpa", "text": "sdpa"}
    with pytest.raises(UserError, match="fusion"):
        tiny("open_clip").width("fusion")


def test_token_drop_spares_the_class_token() -> None:
    backbone = tiny("open_clip")
    seen = []
    block = backbone.model.visual.transformer.resblocks[0]
    handle = block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    noise = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    training_features(backbone, noise, token_drop=0.75)
    training_features(backbone, noise)
    handle.remove()
    assert seen == [1 + 4, 1 + 16]


def test_a_merged_adapter_is_the_model_itself(tmp_path) -> None:
    backbone = tiny("open_clip")
    adapter = attach(backbone, make_config("partial", {"layers": 1, "heads": True}))
    with torch.no_grad():
        for parameter in adapter.trained().values():
            parameter.add_(0.1)
        expected = backbone.encode_image(pixels())
        merge(backbone)
        save_backbone(backbone, tmp_path / "merged", dtype="float32")
        assert torch.equal(load(str(tmp_path / "merged")).encode_image(pixels()), expected)


# -- directories ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A plain `CLIP`, its text tower at the top level, saved as open_clip's hub folders are."""
    library = open_clip()
    torch.manual_seed(3)
    config = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}
    model = library.CLIP(**config)
    values = {"model_cfg": config, "preprocess_cfg": {"size": 32, "mean": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(values))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path, model.eval()


def test_a_directory_gives_the_models_own_features(folder) -> None:
    path, model = folder
    for source in (str(path), f"open_clip:{path}"):
        backbone = load(source)
        tokens = backbone.tokenize(TEXTS)
        with torch.no_grad():
            assert torch.equal(backbone.encode_image(pixels()), model.encode_image(pixels()))
            mine = backbone.encode_text(tokens.ids)
            torch.testing.assert_close(mine, model.encode_text(padded(backbone)), atol=1e-6, rtol=0)
        assert backbone.preprocess.mean == (0.5,) * 3
    assert backbone.fingerprint == load(str(path)).fingerprint
    assert load(str(path), weights=False).device.type == "meta"
    assert load(str(path), dtype="bfloat16").encode_image(pixels()).dtype == torch.bfloat16


def test_the_scheme_chooses_where_both_layouts_stand_side_by_side(folder, clip_folder) -> None:
    path, _ = folder
    for file in clip_folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    assert load(str(path)).family == "clip"
    assert load(f"open_clip:{path}").family == "open_clip"


def test_of_a_hub_repository_the_scheme_fetches_that_layout_alone(folder, monkeypatch) -> None:
    """laion's repositories hold the weights in both layouts, some old ones as a pickle only."""
    import huggingface_hub

    path, _ = folder
    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("open_clip:laion/some-model").source == "open_clip:laion/some-model"
    [(repository, patterns)] = asked
    assert repository == "laion/some-model"
    assert "open_clip_model.safetensors" in patterns
    assert "model.safetensors" not in patterns
    (path / "open_clip_model.safetensors").rename(path / "elsewhere.safetensors")
    with pytest.raises(UserError, match="no weights"):
        load("open_clip:laion/some-model")
    assert asked[-1][1][-1] == "open_clip_pytorch_model.bin"


def test_an_old_pickled_weight_file_is_read_without_running_code(folder) -> None:
    path, _ = folder
    safe = path / "open_clip_model.safetensors"
    expected = load(str(path)).fingerprint
    state = {f"module.{k}": v for k, v in load_file(safe).items()}
    torch.save({"state_dict": state}, path / "open_clip_pytorch_model.bin")
    safe.unlink()
    assert load(str(path)).fingerprint == expected
    torch.save({"evil": print}, path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        load(str(path))


def test_saved_again_it_is_the_same_for_us_and_for_the_library(folder, tmp_path) -> None:
    backbone = load(str(folder[0]))
    save_backbone(backbone, tmp_path / "out", dtype="float32")
    again = load(str(tmp_path / "out"))
    assert again.fingerprint == backbone.fingerprint
    theirs = open_clip().create_model(f"local-dir:{tmp_path / 'out'}")
    with torch.no_grad():
        assert torch.equal(theirs.eval().encode_image(pixels()), again.encode_image(pixels()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("visual.proj"), "lacks tensor, 'visual.proj'"),
        (lambda state: state.update(extra=torch.ones(1)), "unknown tensor, 'extra'"),
        (lambda state: state.update(logit_scale=torch.ones(2)), "logit_scale"),
        (lambda state: state.update({"visual.proj": torch.ones(2, 2)}), "mis-shaped"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, spoil, message) -> None:
    path, _ = folder
    state = load_file(path / "open_clip_model.safetensors")
    spoil(state)
    save_file(state, path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=message):
        load(str(path))


def test_missing_files_are_named(folder, tmp_path) -> None:
    path, _ = folder
    (path / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load(str(path))
    config = json.loads((path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/words"
    (path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="needs the tokenizer 'someone/words'"):
        load(str(path))
    (path / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match="no open_clip_config"):
        load(f"open_clip:{path}")


def test_a_hugging_face_tokenizer_beside_the_model_is_used(folder, siglip_folder) -> None:
    """As a SigLIP-style model has it: no start token, padded to the whole length."""
    path, _ = folder
    words = tiny("siglip").tokenize.tokenizer
    text = {**TEXT, **SIGLIP, "vocab_size": len(words), "hf_tokenizer_name": "someone/words"}
    config = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": text, "custom_text": True}
    model = open_clip().CustomTextCLIP(12, VISION, text)
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    words.save_pretrained(path)
    backbone = load(str(path))
    ids = backbone.tokenize(["a red door"]).ids
    expected = words(["a red door"], padding="max_length", max_length=24)["input_ids"]
    assert ids.tolist() == expected
    assert (backbone.tokenize.start, backbone.causal_text) == (0, False)
    placed = backbone.tokenize.make_room(ids, 3)
    assert placed[0, :3].tolist() == [words.pad_token_id] * 3
    assert placed[0, 3:].tolist() == expected[0][:21]
    save_backbone(backbone, path / "again")
    assert load(str(path / "again")).tokenize.identity == backbone.tokenize.identity


# -- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "options", "count"),
    [
        ("ViT-B-32", "cross-modal-adapter", {"r": 8, "d_s": 16}, 519_168),
        ("ViT-B-32", "full", {}, 123_540_993),
        ("ViT-B-32", "partial", {}, 10_240_256),
        ("ViT-B-32", "projection", {}, 657_921),
        ("ViT-B-16", "maple", {}, 3_555_072),
        ("ViT-B-32", "peft:lora", {"r": 4}, 12 * 3 * 4 * 2 * (768 + 512)),
    ],
)
def test_counts_are_those_of_the_same_model_in_its_other_layout(
    name, method, options, count
) -> None:
    backbone = load(f"config:open_clip/{name}", weights=False)
    summary = summarise(backbone, make_config(method, options))
    twin = load(f"config:clip-vit-base-patch{name[-2:]}", weights=False)
    theirs = summarise(twin, make_config(method, options))
    assert summary.trainable == theirs.trainable == count
    assert summary.per_tower == theirs.per_tower
    assert summary.total == theirs.total


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(UserError, match="ViT-B-32"):
        load("config:open_clip/ViT-B-23")
    backbone = load("config:open_clip/ViT-B-16-quickgelu", weights=False)
    assert isinstance(backbone.model.text.transformer.resblocks[0].attn, nn.MultiheadAttention)
    assert backbone.tokens("vision") == 197
