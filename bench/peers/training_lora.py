"""PEFT LoRA in sentence-transformers' own trainer, with its defaults.

    python training_lora.py FOLDER [--bf16]

Pictures are given as PIL pictures of the model's size, as its documentation trains CLIP; its
collator prepares them, and its tokenizer the captions, in every step.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MultipleNegativesRankingLoss

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _sides import serve


def main() -> None:
    """Load and serve epochs of one trainer."""
    folder, bf16 = Path(sys.argv[1]), "--bf16" in sys.argv
    model = SentenceTransformer(str(folder / "model"))
    model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"]))
    pixels = np.load(folder / "pixels.npy").transpose(0, 2, 3, 1)
    texts = json.loads((folder / "captions.json").read_text())
    pictures = [Image.fromarray(picture) for picture in pixels]
    data = Dataset.from_dict({"anchor": pictures, "positive": texts})
    loss = MultipleNegativesRankingLoss(model)

    def epoch() -> dict[str, float]:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=tempfile.mkdtemp(dir=folder),
            per_device_train_batch_size=32,
            num_train_epochs=1,
            bf16=bf16,
            use_cpu=True,  # without it the trainer refuses bf16 on a machine without GPU
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=loss
        )
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        out = trainer.train()
        return {"count": len(texts), "trained": trained, "loss": out.training_loss}

    serve(epoch)


if __name__ == "__main__":
    main()
