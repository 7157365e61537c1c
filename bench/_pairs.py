"""The model and the pairs that every side of the training measurements works on.

A folder with a CLIP ViT-B/32 of random weights (its vocabulary as large as the published one,
the tokenizer that of the bundled model, whose ids are a part of it), noise of 224 x 224 as
pictures, and captions of 8 to 15 tokens, start and end included.
"""

from __future__ import annotations

import json
import random
import shutil
from importlib.resources import files
from pathlib import Path

ARCHITECTURE = "config:clip-vit-base-patch32"
_WORDS = (
    "a",
    "the",
    "red",
    "green",
    "small",
    "old",
    "woman",
    "dog",
    "cat",
    "house",
    "table",
    "stands",
    "runs",
    "beside",
    "under",
    "with",
    "and",
    "in",
    "two",
)


def prepare(folder: Path, pairs: int, seed: int = 0) -> None:
    """Write ``model/``, ``pixels.npy`` uint8 (pairs, 3, 224, 224) and ``captions.json``."""
    import numpy as np

    import crossadapt

    small = crossadapt.load("pico-clip")
    model = crossadapt.load(ARCHITECTURE).model
    ids = small.model.config.text_config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config.text_config, name, getattr(ids, name))
    model.save_pretrained(folder / "model")
    bundled = files("crossadapt") / "assets" / "pico-clip"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(str(bundled / name), folder / "model" / name)
    preprocess = crossadapt.load(ARCHITECTURE).preprocess
    picture = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
    }
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(picture))
    draw = random.Random(seed)
    captions = [_caption(draw, small.tokenize) for _ in range(pairs)]
    (folder / "captions.json").write_text(json.dumps(captions))
    shape = (pairs, 3, 224, 224)
    np.save(folder / "pixels.npy", np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def _caption(draw: random.Random, tokenize) -> str:
    wanted = draw.randint(8, 15)
    while True:
        text = " ".join(draw.choices(_WORDS, k=draw.randint(3, 13)))
        if int(tokenize([text]).mask.sum()) == wanted:
            return text
