"""``SOURCE@PIXELS``: a frozen backbone at another picture size."""

from __future__ import annotations

import pytest
import torch

from crossadapt import CrossModalAdapterConfig, attach, load
from crossadapt.backbones.resolution import resampled, split_resolution
from crossadapt.errors import UserError

FAMILIES = ("tiny:clip", "tiny:siglip", "tiny:blip", "tiny:open_clip")


def test_only_digits_at_the_end_are_a_size() -> None:
    """Names with an @ of their own stay whole."""
    assert split_resolution("pico-clip@72") == ("pico-clip", 72)
    assert split_resolution("a@b/c") == ("a@b/c", None)
    assert split_resolution("@72") == ("@72", None)


def test_what_has_no_size_of_its_own(tmp_path, monkeypatch) -> None:
    """A directory that is called so, a fused backbone as a whole, a file that says the size."""
    monkeypatch.chdir(tmp_path)
    assert split_resolution("model@72") == ("model", 72)
    (tmp_path / "model@72").mkdir()
    for source in ("model@72", "fuse:tiny:clip+tiny:siglip@40", "new:architecture.yaml@40"):
        assert split_resolution(source) == (source, None)


@pytest.mark.parametrize("source", FAMILIES)
@pytest.mark.parametrize("pixels", [24, 40])
def test_positions_are_resampled_and_nothing_else_changes(source: str, pixels: int) -> None:
    """Smaller and larger; pictures are prepared at the new size; texts come out the same."""
    own, sized = load(source), load(f"{source}@{pixels}")
    assert sized.image_size == sized.preprocess.size == (pixels, pixels)
    assert sized.source == f"{source}@{pixels}"
    assert sized.fingerprint != own.fingerprint
    changed = [
        name
        for (name, a), b in zip(own.model.named_parameters(), sized.model.parameters(), strict=True)
        if a.shape != b.shape or not torch.equal(a, b)
    ]
    assert len(changed) == 1
    assert "position" in changed[0]
    assert not any(p.requires_grad for p in sized.model.parameters())
    assert sized.encode_image(torch.randn(2, 3, pixels, pixels)).isfinite().all()
    tokens = own.tokenize(["a red square"])
    assert torch.equal(
        own.encode_text(tokens.ids, tokens.mask), sized.encode_text(tokens.ids, tokens.mask)
    )


@pytest.mark.parametrize("source", ["tiny:clip", "tiny:siglip"])
def test_features_are_those_of_interpolated_positions(source: str) -> None:
    """transformers interpolates in every call what is resampled once here."""
    pixels = torch.randn(2, 3, 40, 40)
    theirs = load(source).model.get_image_features(
        pixel_values=pixels, interpolate_pos_encoding=True
    )
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    torch.testing.assert_close(
        load(f"{source}@40").encode_image(pixels), theirs, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("source", FAMILIES)
def test_the_own_size_is_the_same_backbone(source: str) -> None:
    """Also by its fingerprint, so that adapters fit."""
    own = load(source)
    assert load(f"{source}@{own.image_size[0]}").fingerprint == own.fingerprint


def test_constant_positions_stay_constant() -> None:
    """Whatever the grids; the class token is not mixed in."""
    table = torch.cat([torch.zeros(1, 3), torch.ones(16, 3)])
    found = resampled(table, 4, 7, extra=1)
    assert torch.equal(found[0], torch.zeros(3))
    assert torch.allclose(found[1:], torch.ones(49, 3))


@pytest.mark.parametrize(
    ("source", "said"),
    [("tiny:clip@36", "multiple"), ("tiny:clip@0", "multiple"), ("no-such@40", "Unknown backbone")],
)
def test_a_size_that_cannot_be_is_refused(source: str, said: str) -> None:
    """With a size that can."""
    with pytest.raises(UserError, match=said):
        load(source)


def test_members_of_a_fused_backbone_have_sizes() -> None:
    """The suffix belongs to the member in front of it."""
    fused = load("fuse:tiny:clip@40+tiny:siglip")
    assert [member.image_size[0] for member in fused.members] == [40, 32]


def test_counting_needs_no_weights() -> None:
    """A plan at another size: one more position for every new patch."""
    own, sized = (load(s, weights=False) for s in ("tiny:clip", "tiny:clip@40"))
    more = sum(p.numel() for p in sized.model.parameters()) - sum(
        p.numel() for p in own.model.parameters()
    )
    assert more == (25 - 16) * own.width("vision")


def test_a_saved_backbone_keeps_its_size(tmp_path) -> None:
    """In Hugging Face layout."""
    from crossadapt.backbones import save_backbone

    sized = load("tiny:clip@40")
    save_backbone(sized, tmp_path / "model")
    again = load(str(tmp_path / "model"))
    pixels = torch.randn(2, 3, 40, 40)
    assert again.preprocess.size == (40, 40)
    # The file is in half precision.
    found, wanted = again.encode_image(pixels), sized.encode_image(pixels)
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.9999


def test_an_adapter_is_bound_to_the_size(tmp_path) -> None:
    """One trained at 40 pixels is refused at 32."""
    from crossadapt.adapters.folder import load_adapter, save_adapter

    sized = load("tiny:clip@40")
    attach(sized, CrossModalAdapterConfig())
    save_adapter(sized, "default", tmp_path / "adapter")
    load_adapter(load("tiny:clip@40"), tmp_path / "adapter")
    with pytest.raises(UserError, match="backbone"):
        load_adapter(load("tiny:clip"), tmp_path / "adapter")
