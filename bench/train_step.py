"""Training step: Cross-Modal Adapter as trained here, against plain full fine-tuning.

    python bench/train_step.py [--backbone config:clip-vit-base-patch32] [--batch 32] [--rounds 5]

Both sides take the same random batch, alternately, in one process. *Plain* is what one writes with
transformers alone: float32, texts padded to the maximum length, every weight trained with AdamW.
*Ours* is a step of the project's loop: frozen backbone, bf16 where the CPU multiplies in it, texts
at their real length. Prints pairs per second of each round, the medians' ratio, and the range of
the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from crossadapt import CrossModalAdapterConfig, attach, detach, load
from crossadapt.backbones.hf import HFBackbone, pooled
from crossadapt.backbones.precision import choose_precision
from crossadapt.tasks.objectives import info_nce
from crossadapt.training.config import make_recipe
from crossadapt.training.optimisers import make_optimiser


def batch_of(backbone: HFBackbone, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pixels, padded ids (size, longest) and lengths of 8 to 15 tokens."""
    text = backbone.tower_config("text")
    pixels = torch.randn(size, 3, *backbone.image_size)
    lengths = torch.randint(8, 16, (size,)).clamp(max=text.max_position_embeddings)
    end = text.eos_token_id if text.eos_token_id != 2 else text.vocab_size - 1
    ids = torch.randint(3, min(end, text.vocab_size - 1), (size, text.max_position_embeddings))
    for row, length in enumerate(lengths.tolist()):
        ids[row, length - 1 :] = end
    return pixels, ids, lengths


def plain_step(backbone: HFBackbone) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Full fine-tuning of the Hugging Face model itself."""
    model = backbone.model.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(pixels: torch.Tensor, ids: torch.Tensor) -> None:
        images = F.normalize(pooled(model.get_image_features(pixel_values=pixels)), dim=-1)
        texts = F.normalize(pooled(model.get_text_features(input_ids=ids)), dim=-1)
        logits = model.logit_scale.exp() * texts @ images.T
        target = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def adapter_step(backbone: HFBackbone) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A step of the project's loop, without data loading."""
    trained = backbone.adapters["default"].trained()
    optimiser = make_optimiser(trained, make_recipe())
    precision = choose_precision("auto", str(backbone.device))

    def step(pixels: torch.Tensor, ids: torch.Tensor) -> None:
        with precision.autocast():
            images = backbone.encode_image(pixels)
        with precision.autocast():
            texts = backbone.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
        info_nce(images, texts, backbone.logit_scale.exp()).backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[torch.Tensor, torch.Tensor], None], *batch: torch.Tensor) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step(*batch)
    return time.perf_counter() - start


def main() -> None:
    """Alternate both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="pico-clip")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    # The plain side keeps the attention transformers picks; ours chooses by shape.
    frozen, whole = load(arguments.backbone), load(arguments.backbone, attention="sdpa")
    attach(frozen, CrossModalAdapterConfig())
    ours, plain = adapter_step(frozen), plain_step(whole)
    pixels, ids, lengths = batch_of(frozen, arguments.batch)
    short = ids[:, : int(lengths.max())]
    ours(pixels, short), plain(pixels, ids)  # warm-up
    rounds = [
        (timed(ours, pixels, short), timed(plain, pixels, ids)) for _ in range(arguments.rounds)
    ]
    detach(frozen)
    ratios = [theirs / mine for mine, theirs in rounds]
    result = {
        "backbone": arguments.backbone,
        "batch": arguments.batch,
        "ours_pairs_per_second": [round(arguments.batch / mine, 2) for mine, _ in rounds],
        "plain_pairs_per_second": [round(arguments.batch / theirs, 2) for _, theirs in rounds],
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
