"""Frozen weights of matrix products held in bf16 during a training in bf16.

Under autocast a product casts its float32 weight to bf16 every time, and keeps the copy until the
backward pass: for a frozen weight that is work and memory for nothing, because the copy is always
the same. Held in bf16 from the start, the products give the same bits, the model takes half the
memory, and no copy is made. Norms, embeddings, biases and the convolution of the patches stay in
float32.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.precision import Precision


def hold_products_in_bf16(
    backbone: HFBackbone, precision: Precision, keep: Collection[str] = ()
) -> int:
    """Replace what the weights of the model's linear layers hold.

    For a backbone that is encoded under ``precision.autocast()`` alone from now on: anything else
    is an error of PyTorch about two number formats, never another number. The fingerprint stays
    that of the float32 weights.

    Args:
        backbone: loaded for this run only; nothing happens unless `precision` is bf16.
        precision: of the run.
        keep: names of parameters that must stay as they are: those that trained copies stand in
            for, because the strength of an adapter mixes copy and original.

    Returns:
        How many weights were replaced.
    """
    if precision.name != "bf16" or backbone.device.type == "meta":
        return 0
    _ = backbone.fingerprint  # of the weights as they are; a change of .data does not renew it
    modules = dict(backbone.model.named_modules())
    count = 0
    for path, module in modules.items():
        # Subclasses may read their weight in another way than by one product. The convolution of
        # the patches stays: transformers takes the number format of its neighbours from it.
        if type(module) is not nn.Linear or f"{path}.weight" in keep:
            continue
        weight = module.weight
        if weight.dtype == torch.float32 and not weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
            count += 1
    return count
