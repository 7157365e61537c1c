"""One hash that says which frozen model, tokenizer and preprocessing produced an embedding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch

from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.hf import HFBackbone

_SHARED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)
# Named one by one: which other keys a configuration has differs between transformers releases.
_VISION = (*_SHARED, "image_size", "patch_size", "num_channels")
_TEXT = (*_SHARED, "vocab_size", "max_position_embeddings", "eos_token_id")


class Fingerprint:
    """A fingerprint that is recomputed only after a weight was written to."""

    def __init__(self) -> None:
        self._seen: tuple[tuple[int, int], ...] | None = None
        self._value = ""

    def of(self, backbone: HFBackbone) -> str:
        """Hex SHA-256 of `backbone`; the value of the last call if no parameter changed since."""
        # In-place writes raise a tensor's version, moving to another device does not.
        seen = tuple((id(p), p._version) for p in backbone.model.parameters())
        if seen != self._seen:
            self._value, self._seen = fingerprint(backbone), seen
        return self._value


def fingerprint(backbone: HFBackbone) -> str:
    """Hex SHA-256 over everything that shapes a feature of the un-adapted backbone.

    Weights enter as float32, sorted by name, so the same directory gives the same value on every
    load and after every move between devices. Settings that do not change what is computed
    (attention implementation, versions, paths) stay out.

    Raises:
        UserError: the backbone was built without weights.
    """
    if backbone.device.type == "meta":
        raise UserError(
            "A backbone built without weights has no fingerprint.",
            where=backbone.source,
            fix="load it with weights=True",
        )
    digest = hashlib.sha256()
    facts = {
        "family": backbone.family,
        "embedding_dim": backbone.embedding_dim,
        **backbone.identity(),
        "preprocess": backbone.preprocess.to_dict(),
        "tokenizer": backbone.tokenize.identity,
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, parameter in sorted(backbone.model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        values = parameter.detach().to("cpu", torch.float32).contiguous()
        digest.update(values.reshape(-1).numpy())
    return digest.hexdigest()


def identity_of(config: Any, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """What shapes a feature in a Hugging Face configuration of two towers.

    `leave_out` names the settings that a family does not have or does not read.
    """
    return {
        "vision": _values(config.vision_config, _VISION, leave_out),
        "text": _values(config.text_config, _TEXT, leave_out),
    }


def _values(config: Any, keys: tuple[str, ...], leave_out: Collection[str]) -> dict[str, Any]:
    return {key: getattr(config, key) for key in keys if key not in leave_out}
