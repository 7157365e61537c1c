"""PEFT methods as crossadapt methods: ``peft:lora``, ``peft:dora``, ``peft:ia3`` and more."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import peft
from peft import PeftConfig
from torch import nn

from crossadapt.adapters.plan import Plan, Shadow
from crossadapt.adapters.registry import Method
from crossadapt.backbones.base import Backbone
from crossadapt.errors import UserError, did_you_mean
from crossadapt.integrations.peft import configs as c
from crossadapt.integrations.peft.shadow import (
    set_shadow_strength,
    structural_copy,
    trained_tensors,
    tuned,
)
from crossadapt.layers.packed_attention import UnpackedAttention, unpack_attention

# open_clip's names of the layers of an MLP.
_SPELT = {"c_fc": "fc1", "c_proj": "fc2"}


def peft_method_names() -> list[str]:
    """The PEFT methods that `peft_method` knows, without the ``peft:`` prefix."""
    return sorted(c.CONFIGS)


def peft_method(name: str) -> Method:
    """The crossadapt method that runs PEFT's method `name` (``lora``, ``dora``, ``ia3``, …).

    Raises:
        UserError: PEFT has no such method, or it is not among those tested here.
    """
    if name not in c.CONFIGS:
        raise UserError(
            f"there is no method 'peft:{name}'",
            where="the PEFT bridge",
            fix=did_you_mean(name, c.CONFIGS),
        )
    config_class = c.CONFIGS[name]
    doc = inspect.getdoc(config_class) or ""
    return Method(f"peft:{name}", config_class, _plan, doc)


def _plan(backbone: Backbone, config: c.PeftMethodConfig) -> Plan:
    layers = target_layers(backbone, config)
    _check_options(layers, config)
    packed = packed_paths(backbone)
    build = partial(_build, config=config, paths=list(layers), packed=packed)
    return [Shadow(build, trained_tensors, set_shadow_strength)]


def _build(
    model: nn.Module, config: c.PeftMethodConfig, paths: list[str], packed: list[str]
) -> nn.Module:
    shadow = structural_copy(model)
    for path in packed:
        unpack_attention(shadow, path)
    return tuned(shadow, _MAKE[type(config)](config, paths))


def packed_paths(backbone: Backbone) -> list[str]:
    """Where the blocks of `backbone` hold their attention as one packed layer (open_clip does)."""
    paths = [site.path for site in backbone.sites() if site.kind == "attention"]
    return [p for p in paths if isinstance(backbone.model.get_submodule(p), nn.MultiheadAttention)]


def target_layers(backbone: Backbone, config: c.PeftMethodConfig) -> dict[str, nn.Linear]:
    """The linear layers that `config` adapts by dotted path, in the order of the sites.

    Encoder blocks only: the pooling head of SigLIP also has an out_proj, but
    `nn.MultiheadAttention` reads that layer's weight without calling it, and an adapter there
    would never be used. Where the blocks themselves use such layers (open_clip), the paths are
    those of the copy in which they are unpacked.

    Raises:
        UserError: an unknown layer name, or none given.
    """
    for name in config.target:
        if name not in c.PROJECTIONS:
            raise UserError(
                f"there is no layer {name!r} to adapt",
                where=f"{config.method}.target",
                fix=did_you_mean(name, c.PROJECTIONS),
            )
    if not config.target:
        raise UserError(
            "no layer to adapt",
            where=f"{config.method}.target",
            fix="name some of " + ", ".join(c.PROJECTIONS),
        )
    layers = {}
    for site in backbone.sites():
        if site.kind not in ("attention", "mlp") or config.towers not in ("both", site.tower):
            continue
        module = backbone.model.get_submodule(site.path)
        if isinstance(module, nn.MultiheadAttention):
            module = UnpackedAttention(module)
        for leaf, layer in module.named_children():
            if _SPELT.get(leaf, leaf) in config.target and isinstance(layer, nn.Linear):
                layers[f"{site.path}.{leaf}"] = layer
    if not layers:
        raise UserError(
            f"{backbone.source} has none of the layers {', '.join(config.target)} to adapt",
            where=f"{config.method}.target",
            fix="name other layers, or adapt the members of a fused backbone one by one",
        )
    return layers


def _check_options(layers: dict[str, nn.Linear], config: c.PeftMethodConfig) -> None:
    for name in ("r", "block_size"):
        value = getattr(config, name, 1)
        if value < 1:
            raise UserError(
                f"{name} is {value}", where=f"{config.method}.{name}", fix="give 1 or more"
            )
    dropout = getattr(config, "dropout", 0.0)
    if not 0.0 <= dropout < 1.0:
        raise UserError(
            f"dropout is {dropout}", where=f"{config.method}.dropout", fix="give a value in [0, 1)"
        )
    if isinstance(config, c.PeftOftConfig):
        # PEFT would silently take another block size where this one does not divide the width.
        for path, layer in layers.items():
            if layer.in_features % config.block_size:
                raise UserError(
                    f"block_size {config.block_size} does not divide {layer.in_features} inputs",
                    where=path,
                    fix="give a divisor of every adapted layer's input width",
                )


def _lora(config: c.PeftLoraConfig | c.PeftDoraConfig, paths: list[str]) -> PeftConfig:
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=isinstance(config, c.PeftDoraConfig),
        target_modules=paths,
    )


def _ia3(config: c.PeftIA3Config, paths: list[str]) -> PeftConfig:
    inner = [path for path in paths if path.endswith((".fc2", ".c_proj"))]
    return peft.IA3Config(target_modules=paths, feedforward_modules=inner)


def _vera(config: c.PeftVeraConfig, paths: list[str]) -> PeftConfig:
    return peft.VeraConfig(
        r=config.r,
        d_initial=config.d_initial,
        vera_dropout=config.dropout,
        projection_prng_key=config.projection_seed,
        target_modules=paths,
    )


def _oft(config: c.PeftOftConfig, paths: list[str]) -> PeftConfig:
    return peft.OFTConfig(
        r=0,
        oft_block_size=config.block_size,
        module_dropout=config.dropout,
        target_modules=paths,
    )


def _hra(config: c.PeftHraConfig, paths: list[str]) -> PeftConfig:
    return peft.HRAConfig(r=config.r, target_modules=paths)


def _loha(config: c.PeftLohaConfig, paths: list[str]) -> PeftConfig:
    return peft.LoHaConfig(r=config.r, alpha=config.alpha, target_modules=paths)


_MAKE: dict[type, Callable[[Any, list[str]], PeftConfig]] = {
    c.PeftLoraConfig: _lora,
    c.PeftDoraConfig: _lora,
    c.PeftIA3Config: _ia3,
    c.PeftVeraConfig: _vera,
    c.PeftOftConfig: _oft,
    c.PeftHraConfig: _hra,
    c.PeftLohaConfig: _loha,
}
