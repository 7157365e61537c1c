"""The peers' side of the embedding bench, as their documentation says.

    python bench/peers/embedding.py st-images|st-texts|open-clip MODEL INPUTS.json OUT.npy

sentence-transformers: a model of a `Transformer` module over the directory, `encode` of a list
with its defaults. open_clip: its tokenizer (padded to 77) and `encode_text` under `no_grad`, in
batches of 256; it is given stand-ins for torchvision, of which it uses nothing here.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import _sides

_BATCH = 256


class _Absent(type):
    """Any name of torchvision, and any name within it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name, (), {})


def sentence_transformers(part: str, model: str, inputs: list[str]) -> Any:
    """A function that encodes all inputs."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    encoder = SentenceTransformer(modules=[Transformer(model)], device="cpu")

    def encode() -> np.ndarray:
        if part == "st-texts":
            return encoder.encode(inputs, show_progress_bar=False)
        # Opened lazily: the file is read when `encode` comes to it.
        pictures = [Image.open(path) for path in inputs]
        return encoder.encode(pictures, show_progress_bar=False)

    return encode


def open_clip(inputs: list[str]) -> Any:
    """A function that encodes all inputs."""
    names = ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional")
    for name in (f"torchvision{n}" for n in names):
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        module.__getattr__ = lambda attribute: _Absent(attribute, (), {})  # type: ignore
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    import open_clip as library

    model = library.create_model("ViT-B-32", pretrained=None).eval()
    tokenizer = library.get_tokenizer("ViT-B-32")

    def encode() -> np.ndarray:
        found = []
        with torch.no_grad():
            for start in range(0, len(inputs), _BATCH):
                features = model.encode_text(tokenizer(inputs[start : start + _BATCH]))
                found.append(features / features.norm(dim=-1, keepdim=True))
        return torch.cat(found).numpy()

    return encode


def main() -> None:
    """Get ready and serve."""
    part, model, listed, output = sys.argv[1:]
    inputs = json.loads(Path(listed).read_text())
    encode = open_clip(inputs) if part == "open-clip" else None
    encode = encode or sentence_transformers(part, model, inputs)

    def work() -> dict[str, float]:
        np.save(output, np.asarray(encode(), np.float32))
        return {"count": float(len(inputs))}

    _sides.serve(work)


if __name__ == "__main__":
    main()
