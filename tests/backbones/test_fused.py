"""Several backbones as one: exact mixing of cosines, packed inputs, and what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from crossadapt import backbones
from crossadapt.adapters.attach import attach
from crossadapt.adapters.registry import get_method, make_config, method_names
from crossadapt.backbones import load, save_backbone, tiny
from crossadapt.backbones.fused import ROOM, FusedBackbone
from crossadapt.backbones.precision import choose_precision
from crossadapt.errors import UserError
from crossadapt.tasks.clips import clip_features
from crossadapt.tasks.encode import cut, encode_images, encode_texts, training_features

TEXTS = ["a red door", "two green birds on a blue boat", "a"]


def pictures(count: int = 3) -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(50, 40), (33, 64), (32, 32)]
    return [
        Image.fromarray(random.integers(0, 256, (*sizes[i % 3], 3), dtype=np.uint8))
        for i in range(count)
    ]


@pytest.fixture
def fused() -> FusedBackbone:
    return FusedBackbone([tiny("clip", seed=1), tiny("siglip", seed=2)], source="fuse:a+b")


def of_member(member) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.stack([member.preprocess(image) for image in pictures()])
    tokens = member.tokenize(TEXTS)
    with torch.no_grad():
        return member.encode_image(pixels), member.encode_text(tokens.ids, tokens.mask)


def of_fused(fused) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.stack([fused.preprocess(image) for image in pictures()])
    tokens = fused.tokenize(TEXTS)
    with torch.no_grad():
        return fused.encode_image(pixels), fused.encode_text(tokens.ids, tokens.mask)


def test_cosines_are_the_mean_of_the_members(fused) -> None:
    images, texts = of_fused(fused)
    assert images.shape == (3, fused.embedding_dim)
    assert fused.embedding_dim == ROOM + 12 + 24
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    expected = torch.zeros(3, 3)
    for member in fused.members:
        x, y = of_member(member)
        expected += F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / 2
    torch.testing.assert_close(images @ texts.T, expected, atol=1e-5, rtol=1e-5)
    assert (images[:, :ROOM] == 0).all()


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.2, 0.3, 0.5)])
def test_any_mix_of_cosines_is_one_cosine(fused, weights) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [
        [F.normalize(torch.randn(4, width, generator=generator), dim=1) for width in (7, 12, 24)]
        for _ in range(2)
    ]
    composed = [fused.compose(z, rest, torch.tensor(weights)) for z, *rest in sides]
    expected = sum(
        w * (a @ b.T)
        for w, a, b in zip(weights, *sides, strict=True)  # type: ignore[arg-type]
    )
    torch.testing.assert_close(composed[0] @ composed[1].T, expected)


def test_the_roots_of_idle_parts_give_no_nan(fused) -> None:
    weights = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    fused.compose(
        torch.ones(2, 3), [torch.ones(2, 12), torch.ones(2, 24)], weights
    ).sum().backward()
    assert bool(weights.grad.isfinite().all())


def test_each_member_sees_its_own_picture_bit_for_bit() -> None:
    members = [tiny("clip"), tiny("siglip")]
    wide = copy.deepcopy(members[0].preprocess)
    object.__setattr__(wide, "crop", (20, 44))
    members[0].preprocess = wide
    fused = FusedBackbone(members, source="fuse:a+b")
    assert fused.preprocess.size == (20 + 32, 44)
    image = pictures()[0]
    canvas = fused.preprocess.pixels(image)
    assert (canvas.dtype, tuple(canvas.shape)) == (torch.uint8, (3, 52, 44))
    prepared = fused.preprocess(image)
    for member, raw, ready in zip(
        members,
        fused.preprocess.split(canvas[None]),
        fused.preprocess.split(prepared[None]),
        strict=True,
    ):
        assert torch.equal(raw[0], member.preprocess.pixels(image))
        assert torch.equal(ready[0], member.preprocess(image))
    assert (canvas[:, 20:, 32:] == 0).all()
    again = pickle.loads(pickle.dumps(fused.preprocess.pixels))
    assert torch.equal(again(image), canvas)
    with pytest.raises(UserError, match="where the canvas is"):
        fused.encode_image(torch.zeros(1, 3, 32, 32))


def test_each_member_reads_its_own_text(fused) -> None:
    packed = fused.tokenize(TEXTS)
    assert packed.ids.shape == (3, 32 + 24)
    for rows in ([0, 1, 2], [0], [2, 1]):
        batch = cut(type(packed)(packed.ids[rows], packed.mask[rows]))
        parts = fused.tokenize.split(batch.ids, batch.mask)
        for member, part in zip(fused.members, parts, strict=True):
            own = member.tokenize([TEXTS[row] for row in rows])
            assert torch.equal(part.ids[own.mask], own.ids[own.mask])
            assert torch.equal(part.mask, own.mask)


def test_encoding_in_batches_changes_nothing(fused) -> None:
    images, texts = of_fused(fused)
    pixels = np.stack([fused.preprocess.pixels(image).numpy() for image in pictures()])
    exact = choose_precision("fp32")
    torch.testing.assert_close(encode_images(fused, pixels, 2, exact), images)
    torch.testing.assert_close(encode_texts(fused, TEXTS, 1, exact), texts)


def test_frames(fused) -> None:
    pixels = torch.stack([fused.preprocess(image) for image in pictures()])[None]
    found = fused.encode_frames(pixels, torch.tensor([[True, False, True]]))
    assert found.shape == (1, 3, fused.embedding_dim)
    assert (found[0, 1] == 0).all()
    torch.testing.assert_close(found[0, 2], of_fused(fused)[0][2])


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_token_features(family: str) -> None:
    member = tiny(family, seed=3)
    images, texts = of_member(member)
    pixels = torch.stack([member.preprocess(image) for image in pictures()])
    tokens = member.tokenize(TEXTS)
    with torch.no_grad():
        seen = member.image_tokens(pixels)
        read = member.text_tokens(tokens.ids, tokens.mask)
    assert torch.equal(seen.embedding, images)
    assert torch.equal(read.embedding, texts)
    assert seen.tokens.shape == (3, 17, member.width("vision"))
    assert bool(seen.mask.all())
    assert read.tokens.shape[2] == member.width("text")
    assert bool(read.mask[:, 0].all())
    # Every real token is there once: the hub, and the others without it.
    assert read.mask.sum(1).tolist() == tokens.mask.sum(1).tolist()
    if family == "clip":
        weight = member.model.text_projection.weight
        torch.testing.assert_close(read.tokens[:, 0] @ weight.T, texts)
        weight = member.model.visual_projection.weight
        torch.testing.assert_close(seen.tokens[:, 0] @ weight.T, images)
    else:
        torch.testing.assert_close(seen.tokens[:, 0], images)
        head = member.model.text_model.head
        torch.testing.assert_close(head(read.tokens[:, 0]), texts)


def test_frozen_and_counted_once(fused) -> None:
    assert not any(p.requires_grad for p in fused.parameters())
    assert [n for n, _ in fused.named_children()] == ["model", "adapters"]
    assert sum(p.numel() for p in fused.parameters()) == sum(
        p.numel() for m in fused.members for p in m.model.parameters()
    )
    assert fused.train().model.training is False
    twin = copy.deepcopy(fused)
    assert twin.members[0].model is twin.model[0]
    assert twin.fingerprint == fused.fingerprint


def test_fingerprint_covers_every_member_and_their_order(fused) -> None:
    first, second = fused.members
    others = [[second, first], [first, tiny("siglip", seed=3)], [first, second, tiny("clip")]]
    prints = {FusedBackbone(m, source="x").fingerprint for m in others} | {fused.fingerprint}
    assert len(prints) == 4


def test_load_and_describe() -> None:
    fused = load("fuse:tiny:clip+tiny:siglip")
    assert fused.source == "fuse:tiny:clip+tiny:siglip"
    record = fused.describe()
    assert [m["source"] for m in record["members"]] == ["tiny:clip", "tiny:siglip"]
    assert record["parameters"] == sum(m["parameters"] for m in record["members"])
    assert fused.use_attention("sdpa") == dict.fromkeys(
        ("0.vision", "0.text", "1.vision", "1.text"), "sdpa"
    )
    assert load(fused.source, weights=False).describe()["fingerprint"] is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("fuse:tiny:clip", "two or more"),
        ("fuse:", "two or more"),
        ("fuse:tiny:clip+", "two or more"),
        ("fuse:tiny:clip+tiny:clip", "named twice"),
        ("fuse:tiny:clip+fuse:tiny:clip+tiny:siglip", "cannot be a member"),
        ("fuse:tiny:clip+new:a.yaml", "cannot be a member"),
        ("fuse:tiny:clip+no/such/folder", "does not exist"),
    ],
)
def test_wrong_sources_are_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(source)


def test_blip_is_a_member_with_its_class_tokens_in_front() -> None:
    fused = load("fuse:tiny:blip+tiny:clip")
    blip = fused.members[0]
    pixels = torch.randn(2, 3, *fused.preprocess.size)
    tokens = fused.tokenize(["a red door", "a boat"])
    [own, *_] = fused.packed_tokens.split(tokens.ids, tokens.mask)
    with torch.no_grad():
        seen = fused.look_at_images(pixels)[0]
        said = fused.look_at_texts(tokens.ids, tokens.mask)[0]
        image = blip.encode_image(fused.packed.split(pixels)[0])
        text = blip.encode_text(own.ids, own.mask)
        torch.testing.assert_close(blip.model.vision_proj(seen.tokens[:, 0]), image)
        torch.testing.assert_close(blip.model.text_proj(said.tokens[:, 0]), text)
    torch.testing.assert_close(seen.embedding, image)
    torch.testing.assert_close(said.embedding, text)
    assert seen.mask.all()
    assert torch.equal(said.mask, own.mask)


def test_wrong_members_are_refused(fused) -> None:
    class Plain(backbones.HFBackbone):
        family = "plain"

    plain = Plain.__new__(Plain)
    torch.nn.Module.__init__(plain)
    plain.source = "plain"
    for members, message in (
        ([tiny()], "cannot be fused"),
        ([tiny(), plain], "offers no token features"),
        ([tiny(), fused], "offers no token features"),
    ):
        with pytest.raises(UserError, match=message):
            FusedBackbone(members, source="x")
    adapted = tiny()
    attach(adapted, make_config("adaptformer", {"r": 4}))
    with pytest.raises(UserError, match="has an adapter attached"):
        FusedBackbone([adapted, tiny("siglip")], source="x")
    with pytest.raises(UserError, match="takes the tokenizers of its members"):
        load("fuse:tiny:clip+tiny:siglip", tokenizer="x")
    with pytest.raises(UserError, match="without their mask"):
        fused.encode_text(torch.zeros(1, 56, dtype=torch.int64))


@pytest.mark.parametrize("method", [m for m in method_names() if get_method(m).task is None])
def test_methods_for_one_backbone_say_so(fused, method: str) -> None:
    with pytest.raises(UserError):
        attach(fused, make_config(method))
    assert not len(fused.adapters)


def test_clips_and_dropped_patches(fused) -> None:
    pixels = torch.stack([fused.preprocess.pixels(image) for image in pictures()])
    found = clip_features(fused, pixels[None], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(found[0].detach(), of_fused(fused)[0])
    with pytest.raises(UserError, match="no patches to drop"):
        training_features(fused, pixels, token_drop=0.5)


def test_it_is_not_saved_as_one(fused, tmp_path) -> None:
    with pytest.raises(UserError, match="not saved as one"):
        save_backbone(fused, tmp_path / "a")


def test_peft_says_so(fused) -> None:
    pytest.importorskip("peft")
    with pytest.raises(UserError):
        attach(fused, make_config("peft:lora"))
