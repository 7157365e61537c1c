"""Inputs of the embedding bench: a model, pictures and captions on disk that all sides read."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = (640, 480)
_WORDS = """
a red bicycle leans against the old wall near two people who walk along some wet street with
large dogs under blue sky while children play beside water green trees and white houses on
small boat open window black cat sitting wooden table holding yellow flowers in front of
""".split()  # noqa: SIM905


def make_model(folder: Path, peers: Path) -> None:
    """CLIP ViT-B/32 with random weights and CLIP's own vocabulary, as a Hugging Face directory.

    Args:
        folder: made here unless it is there.
        peers: interpreter of the peers' environment, whose open_clip has the vocabulary.
    """
    from transformers import CLIPConfig, CLIPModel

    from crossadapt.backbones.bpe import clip_tokenizer
    from crossadapt.backbones.building import FAMILIES
    from crossadapt.backbones.preprocess import CLIP_MEAN, CLIP_STD, ImagePreprocess
    from crossadapt.backbones.saving import save_backbone
    from crossadapt.backbones.tokenizing import make_tokens

    if (folder / "model.safetensors").is_file():
        return
    import torch

    torch.manual_seed(0)
    found = next(peers.parent.parent.glob("lib/python*/site-packages/open_clip/bpe_simple*.gz"))
    lines = gzip.decompress(found.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    singles = list(_bytes_to_characters().values())
    entries = [*singles, *(f"{c}</w>" for c in singles), *("".join(pair) for pair in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = clip_tokenizer({entry: i for i, entry in enumerate(entries)}, merges, 77)
    config = CLIPConfig(projection_dim=512)
    config.text_config.eos_token_id, config.text_config.bos_token_id = 49407, 49406
    prepare = ImagePreprocess(CLIP_MEAN, CLIP_STD, shortest_edge=224, crop=(224, 224))
    backbone = FAMILIES["clip"](
        CLIPModel(config), source="bench", preprocess=prepare,
        tokenize=make_tokens(tokenizer, config, "bench"),
    )  # fmt: skip
    save_backbone(backbone, folder, dtype="float32")


def _bytes_to_characters() -> dict[int, str]:
    """The published byte alphabet of GPT-2 and CLIP: printable bytes first, as themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def picture(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture with the spectrum of a photograph, shapes with hard edges and sensor noise."""
    width, height = size
    field = np.zeros((height, width, 3), np.float32)
    for octave in range(8):
        cells = 2 ** (octave + 1)
        grid = rng.normal(size=(3, cells, cells)).astype(np.float32) / cells**0.8
        for channel in range(3):
            layer = Image.fromarray(grid[channel]).resize(size, Image.Resampling.BICUBIC)
            field[..., channel] += np.asarray(layer)
    field = (field - field.min()) / np.ptp(field) * 255
    image = Image.fromarray(field.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        w, h = (int(n) for n in rng.integers(10, width // 3, 2))
        colour = tuple(int(n) for n in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=colour)
    noise = rng.normal(scale=4, size=(height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def make_pictures(folder: Path, count: int) -> list[str]:
    """`count` JPEG files of 640 x 480, quality 90, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:05d}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.is_file():
            part = path.with_suffix(".part")
            picture(np.random.default_rng(index)).save(part, "JPEG", quality=90)
            part.rename(path)
    return [str(path) for path in paths]


def captions(count: int) -> list[str]:
    """Captions of 6 to 13 words, each one token: 8 to 15 tokens with start and end."""
    draw = random.Random(0)
    return [" ".join(draw.choices(_WORDS, k=draw.randint(6, 13))) for _ in range(count)]
