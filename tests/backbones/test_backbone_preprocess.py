"""Pictures come out as from the checkpoint's own processor."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from crossadapt.backbones.preprocess import ImagePreprocess
from crossadapt.errors import UserError

SIZES = [(32, 32), (33, 47), (101, 64), (7, 31), (300, 9), (31, 500), (1, 1), (224, 225)]
CLIP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
# A crop larger than the resized picture is padded; odd differences round in one direction.
PADDED = {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 33}}
SIGLIP = {"size": {"height": 32, "width": 32}}
SIGLIP2 = {"size": {"height": 24, "width": 40}, "resample": 2}


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(width * 1000 + height)
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8), mode=None)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("family", "reference"),
    [
        ("clip", CLIPImageProcessorPil(**CLIP)),
        ("clip", CLIPImageProcessorPil(**PADDED)),
        ("siglip", SiglipImageProcessorPil(**SIGLIP)),
        ("siglip", SiglipImageProcessorPil(**SIGLIP2)),
        ("blip", BlipImageProcessorPil(**SIGLIP)),
        ("blip", BlipImageProcessorPil()),
    ],
    ids=["clip", "clip-padded", "siglip", "siglip2", "blip", "blip-as-it-is"],
)
def test_equals_the_reference_processor(family, reference, size):
    mine = ImagePreprocess.from_config(reference.to_dict(), family, "memory")
    image = picture(*size)
    expected = reference(image, return_tensors="pt")["pixel_values"][0]
    assert mine(image).shape == expected.shape == (3, *mine.size)
    torch.testing.assert_close(mine(image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
def test_other_modes_equal_the_reference(mode):
    reference = CLIPImageProcessorPil(**CLIP)
    mine = ImagePreprocess.from_config(reference.to_dict(), "clip", "memory")
    image = picture(40, 50, mode)
    expected = reference(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(mine(image), expected, atol=1e-5, rtol=0)


def test_pixels_then_normalise_is_the_whole_call():
    mine = ImagePreprocess.from_config(CLIP, "clip", "memory")
    image = picture(50, 41)
    pixels = mine.pixels(image)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 32, 32)
    assert torch.equal(mine.normalise(pixels[None])[0], mine(image))
    assert mine(image).dtype == torch.float32


def test_pickles_and_survives_a_round_trip_through_json():
    mine = ImagePreprocess.from_config(SIGLIP2, "siglip", "memory")
    assert pickle.loads(pickle.dumps(mine)) == mine
    assert ImagePreprocess.from_config(mine.to_dict(), "siglip", "memory") == mine


def test_reads_the_spelling_of_old_files():
    old = {"size": 32, "crop_size": 32, "do_center_crop": True, "do_resize": True}
    new = ImagePreprocess.from_config(CLIP, "clip", "memory")
    assert ImagePreprocess.from_config(old, "clip", "memory") == new


@pytest.mark.parametrize("switch", [{"do_normalize": False}, {"do_rescale": False}])
def test_steps_switched_off_equal_the_reference(switch):
    reference = SiglipImageProcessorPil(**SIGLIP, **switch)
    mine = ImagePreprocess.from_config(reference.to_dict(), "siglip", "memory")
    image = picture(45, 33)
    expected = reference(image, return_tensors="pt")["pixel_values"][0].float()
    torch.testing.assert_close(mine(image), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        {"do_resize": False},
        {"do_pad": True},
        {"size": {"shortest_edge": 32}, "do_center_crop": False},
        {"size": {"longest_edge": 32}},
        {"size": {"height": "wide", "width": 3}},
        {"image_mean": [0.5]},
    ],
)
def test_unsupported_steps_are_errors(config):
    with pytest.raises(UserError, match="processor"):
        ImagePreprocess.from_config(config, "clip", "some/preprocessor_config.json")
