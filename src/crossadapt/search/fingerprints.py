"""One hash per view: over all that changes a vector."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from crossadapt.search.card import FROZEN

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.hf import HFBackbone


def frozen_fingerprint(backbone: HFBackbone) -> str:
    """Hex SHA-256 for the backbone without adapter."""
    return hashlib.sha256(f"{backbone.fingerprint}\0{FROZEN}".encode()).hexdigest()


def adapter_fingerprint(backbone: HFBackbone, adapter: AttachedAdapter, strength: float) -> str:
    """Hex SHA-256 over backbone, method, config, tensors and the strength it works at."""
    facts: dict[str, Any] = {
        "backbone": backbone.fingerprint,
        "method": adapter.method,
        "config": dataclasses.asdict(adapter.config),
        # Untrained tensors of a method, such as random projections, follow from the seed.
        "seed": adapter.seed,
    }
    if strength != 1:  # at 1, fingerprints are what they were before it was saved
        facts["strength"] = strength
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, parameter in sorted({**adapter.trained(), **adapter.kept()}.items()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        values = parameter.detach().to("cpu", torch.float32).contiguous()
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
