"""Options of the PEFT methods that run inside crossadapt, one frozen dataclass per method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""The linear layers of every encoder block of CLIP and SigLIP, by the name both give them."""

Towers = Literal["both", "vision", "text"]


@dataclass(frozen=True)
class PeftLoraConfig:
    """LoRA (Hu et al., 2021): W x + (alpha / r) B A x, A (r, in), B (out, r), B zero at first."""

    method: ClassVar[str] = "peft:lora"

    r: int = 8
    """Rank of the update."""
    alpha: int = 16
    """Scale of the update before division by r (by the root of r with rslora)."""
    dropout: float = 0.0
    """Dropout on the input of A, while training."""
    rslora: bool = False
    """Divide alpha by the square root of r (rank-stabilised LoRA) and not by r."""
    target: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Linear layers to adapt, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2."""
    towers: Towers = "both"
    """Which encoders to adapt."""


@dataclass(frozen=True)
class PeftDoraConfig:
    """DoRA (Liu et al., 2024): LoRA on the direction of W and a trained length per output row."""

    method: ClassVar[str] = "peft:dora"

    r: int = 8
    """Rank of the update."""
    alpha: int = 16
    """Scale of the update before division by r (by the root of r with rslora)."""
    dropout: float = 0.0
    """Dropout on the input of A, while training."""
    rslora: bool = False
    """Divide alpha by the square root of r (rank-stabilised LoRA) and not by r."""
    target: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Linear layers to adapt, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2."""
    towers: Towers = "both"
    """Which encoders to adapt."""


@dataclass(frozen=True)
class PeftIA3Config:
    """IA3 (Liu et al., 2022): a trained factor per channel, one at first."""

    method: ClassVar[str] = "peft:ia3"

    target: tuple[str, ...] = ("k_proj", "v_proj", "fc2")
    """Linear layers to adapt: fc2 is scaled at its input, the others at their output."""
    towers: Towers = "both"
    """Which encoders to adapt."""


@dataclass(frozen=True)
class PeftVeraConfig:
    """VeRA (Kopiczko et al., 2023): LoRA with fixed random A, B for all layers, trained scales."""

    method: ClassVar[str] = "peft:vera"

    r: int = 256
    """Rank of the random projections."""
    d_initial: float = 0.1
    """First value of the trained scale between A and B."""
    dropout: float = 0.0
    """Dropout on the input of A, while training."""
    projection_seed: int = 0
    """Seed of A and B, which are not saved with the adapter."""
    target: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Linear layers to adapt, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2."""
    towers: Towers = "both"
    """Which encoders to adapt."""


@dataclass(frozen=True)
class PeftOftConfig:
    """OFT (Qiu et al., 2023): W R x with R block-diagonal and orthogonal, the identity at first."""

    method: ClassVar[str] = "peft:oft"

    block_size: int = 8
    """Side of a block of R; it must divide the input width of every adapted layer."""
    dropout: float = 0.0
    """Chance of a block to be the identity, while training."""
    target: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Linear layers to adapt, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2."""
    towers: Towers = "both"
    """Which encoders to adapt."""


@dataclass(frozen=True)
class PeftHraConfig:
    """HRA (Yuan et al., 2024): W H_1 … H_r x, each H_i a trained Householder reflection."""

    method: ClassVar[str] = "peft:hra"

    r: int = 8
    """Number of reflections; an even number starts as the identity."""
    target: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Linear layers to adapt, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2."""
    towers: Towers = "both"
    """Which encoders to adapt."""


@dataclass(frozen=True)
class PeftLohaConfig:
    """LoHa (Hyeon-Woo et al., 2021): W x + (alpha / r) ((B1 A1) * (B2 A2)) x, * elementwise."""

    method: ClassVar[str] = "peft:loha"

    r: int = 8
    """Rank of each of the two factors."""
    alpha: int = 16
    """Scale of the update before division by r."""
    target: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Linear layers to adapt, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2."""
    towers: Towers = "both"
    """Which encoders to adapt."""


PeftMethodConfig = (
    PeftLoraConfig
    | PeftDoraConfig
    | PeftIA3Config
    | PeftVeraConfig
    | PeftOftConfig
    | PeftHraConfig
    | PeftLohaConfig
)

CONFIGS: Mapping[str, type[PeftMethodConfig]] = {
    config.method.removeprefix("peft:"): config
    for config in (
        PeftLoraConfig,
        PeftDoraConfig,
        PeftIA3Config,
        PeftVeraConfig,
        PeftOftConfig,
        PeftHraConfig,
        PeftLohaConfig,
    )
}
"""Config class by PEFT method name; what is not here is refused."""
