"""Model directories written by Hugging Face's own classes, as a checkpoint's author would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BlipForImageTextRetrieval,
    BlipProcessor,
    CLIPModel,
    CLIPProcessor,
    SiglipModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from crossadapt.backbones import tiny


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP: model and combined processor through save_pretrained."""
    folder = tmp_path_factory.mktemp("hf") / "clip"
    source = tiny("clip", seed=3)
    torch.manual_seed(3)
    CLIPModel(source.model.config).save_pretrained(folder)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    CLIPProcessor(images, source.tokenize.tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SigLIP: model, tokenizer and image processor each through save_pretrained."""
    folder = tmp_path_factory.mktemp("hf") / "siglip"
    source = tiny("siglip", seed=3)
    torch.manual_seed(3)
    SiglipModel(source.model.config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    source.tokenize.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP: model and combined processor through save_pretrained."""
    folder = tmp_path_factory.mktemp("hf") / "blip"
    source = tiny("blip", seed=3)
    torch.manual_seed(3)
    BlipForImageTextRetrieval(source.model.config).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(images, source.tokenize.tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(params=["clip", "siglip", "blip"])
def folder(request: pytest.FixtureRequest) -> Path:
    """All families in turn."""
    return request.getfixturevalue(f"{request.param}_folder")
