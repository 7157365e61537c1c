"""Plain full fine-tuning with transformers alone: float32, texts padded to 77, AdamW.

python training_full.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _sides import serve

BATCH = 32


def main() -> None:
    """Load and serve epochs."""
    folder = Path(sys.argv[1])
    model = CLIPModel.from_pretrained(folder / "model").train()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = json.loads((folder / "captions.json").read_text())
    ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    settings = json.loads((folder / "model" / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(settings[f"image_{n}"]).view(3, 1, 1) for n in ("mean", "std"))
    pixels = torch.from_numpy(np.load(folder / "pixels.npy"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def epoch() -> dict[str, float]:
        order = torch.randperm(len(ids)).split(BATCH)
        for rows in order:
            values = (pixels[rows].float() / 255 - mean) / std
            out = model(input_ids=ids[rows], pixel_values=values)
            target = torch.arange(len(rows))
            pair = (out.logits_per_text, out.logits_per_image)
            loss = sum(F.cross_entropy(logits, target) for logits in pair) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return {"count": len(ids), "loss": float(loss.detach())}

    serve(epoch)


if __name__ == "__main__":
    main()
