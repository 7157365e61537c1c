"""Frozen dual encoders: what all families have in common, read from Hugging Face models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from crossadapt.backbones.attention import AttentionChoice, choose_attention
from crossadapt.backbones.base import Site, Tower
from crossadapt.backbones.fingerprint import Fingerprint, identity_of
from crossadapt.backbones.overrides import overridden
from crossadapt.backbones.pooled_token import at_pooled_token
from crossadapt.backbones.preprocess import ImagePreprocess
from crossadapt.backbones.tokenizing import Tokens
from crossadapt.errors import UserError
from crossadapt.layers.temporal import clips

OverrideSource = Callable[[], Mapping[str, Tensor]]


class Prompted(Protocol):
    """What an adapter with prompt tokens needs from the encode functions."""

    @property
    def room(self) -> int:
        """Placeholder tokens to put into every text."""
        ...

    def encode(self, tower: str, run: Callable[[], Tensor]) -> Tensor:
        """Features of a tower, from `run`, which encodes once."""
        ...


def pooled(output: Any) -> Tensor:
    """The features of `get_image_features` or `get_text_features`, whatever the release returns.

    transformers 4.57 returns the projected features (B, D) themselves, 5.x an output object that
    carries them as `pooler_output`.
    """
    return output if isinstance(output, Tensor) else output.pooler_output


class HFBackbone(nn.Module):
    """A frozen Hugging Face model behind the `Backbone` contract.

    Its children are `model` (never changed, always in evaluation mode, no gradients) and
    `adapters`. Three extension points serve adapters:

    * `override_source` is called at every encode and every read of `logit_scale`; the tensors it
      returns, by dotted parameter name, stand in for the model's own during that call only.
    * `shadow`, when set, runs instead of `model`: a structural copy that shares its parameters.
      It is deliberately no child, so state dicts and parameter names stay those of `model`.
    * `prompting`, when set, says how many placeholder tokens every text gets and interpolates
      features, for adapters that lengthen sequences.

    Args:
        model: a model of the family's class; frozen in place.
        source: what `load` was given; kept for run records.
        preprocess: picture preparation of this checkpoint.
        tokenize: texts to `TokenBatch`.
    """

    family: ClassVar[str]
    class_token: ClassVar[bool] = True
    causal_text: ClassVar[bool] = True
    masked_text: ClassVar[bool] = False
    prompt_towers: ClassVar[tuple[str, ...]] = ("vision", "text")
    towers: ClassVar[tuple[Tower, ...]] = ("vision", "text")
    pooled_patch: ClassVar[int | None] = None
    model: Any
    shadow: nn.Module | None

    def __init__(
        self,
        model: nn.Module,
        *,
        source: str,
        preprocess: ImagePreprocess,
        tokenize: Tokens,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.adapters = nn.ModuleDict()
        self.source = source
        self.preprocess = preprocess
        self.tokenize = tokenize
        self.override_source: OverrideSource | None = None
        self.prompting: Prompted | None = None
        self.shadow = None
        self.attention: dict[str, str] = {}
        self._fingerprint = Fingerprint()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "shadow":
            # nn.Module would register a module assigned here as a third child.
            self.__dict__["shadow"] = value
            return
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> HFBackbone:
        """Set the mode of the adapters; the frozen model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    # -- encoding -----------------------------------------------------------------------------

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to projected, un-normalised features (B, D)."""

        def run() -> Tensor:
            with self._running() as model:
                return self.image_features(model, pixels.to(self.device))

        return run() if self.prompting is None else self.prompting.encode("vision", run)

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token ids (B, L) from `tokenize` to projected, un-normalised features (B, D).

        `mask` (B, L) is part of the contract; neither family needs it, see `docs/backbones.md`.
        """

        def run() -> Tensor:
            room = 0 if self.prompting is None else self.prompting.room
            placed = self.tokenize.make_room(ids, room) if room else ids
            with self._running() as model:
                return self.text_features(model, placed.to(self.device))

        return run() if self.prompting is None else self.prompting.encode("text", run)

    def image_features(self, model: Any, pixels: Tensor) -> Tensor:
        """Features of pixels by `model` (the frozen model or the shadow); families override it."""
        with self._pooling(model, "vision", self.pooled_patch):
            return pooled(model.get_image_features(pixel_values=pixels))

    def text_features(self, model: Any, ids: Tensor) -> Tensor:
        """Features of token ids by `model`; families override it."""
        with self._pooling(model, "text", self.pooled_word(ids)):
            return pooled(model.get_text_features(input_ids=ids))

    def pooled_word(self, ids: Tensor) -> int | Tensor | None:
        """Which token of ids (B, L) the text tower pools, for all or (B,); None: not only one."""
        return None

    def _pooling(
        self, model: Any, tower: Tower, place: int | Tensor | None
    ) -> AbstractContextManager[None]:
        if place is None:
            return nullcontext()
        return at_pooled_token(model.get_submodule(f"{tower}_model"), place)

    def encode_frames(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) and mask (B, F) to features (B, F, D).

        Masked frames cost nothing and come out as zeros. Modules at sites of the vision tower see
        the other frames as pictures (K, tokens, width); `crossadapt.layers.temporal` tells them
        which of these form a clip.
        """
        batch, frames = pixels.shape[:2]
        keep = mask.reshape(-1).bool()
        if not keep.any():
            return torch.zeros(batch, frames, self.embedding_dim, device=self.device)
        with clips(mask.bool()):
            features = self.encode_image(pixels.flatten(0, 1)[keep.to(pixels.device)])
        full = features.new_zeros(batch * frames, features.shape[-1])
        where = keep.to(features.device).nonzero().squeeze(1)
        return full.index_copy(0, where, features).reshape(batch, frames, -1)

    @contextmanager
    def _running(self) -> Iterator[Any]:
        """The module that encodes now (`shadow` or `model`), with overrides in place."""
        module = self.model if self.shadow is None else self.shadow
        overrides = {} if self.override_source is None else self.override_source()
        with overridden(module, overrides):
            yield module

    def _scalar(self, name: str) -> Tensor:
        overrides = {} if self.override_source is None else self.override_source()
        value = overrides[name] if name in overrides else getattr(self.model, name)
        return value.reshape(())

    @property
    def logit_scale(self) -> Tensor:
        """Log of the similarity scale, a scalar, with any active override applied."""
        return self._scalar("logit_scale")

    @property
    def logit_bias(self) -> Tensor | None:
        """Bias of the sigmoid loss, a scalar; None where the family has none."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else self._scalar("logit_bias")

    # -- shape --------------------------------------------------------------------------------

    def tower_config(self, tower: Tower) -> Any:
        """Hugging Face configuration of one tower; an unknown tower is a `UserError`."""
        if tower not in self.towers:
            raise UserError(
                f"A {self.family} backbone has no {tower!r} tower.",
                where=self.source,
                fix="use 'vision' or 'text', or a backbone with a fusion tower",
            )
        return getattr(self.model.config, f"{tower}_config")

    def width(self, tower: Tower) -> int:
        """Hidden size of a tower."""
        return self.tower_config(tower).hidden_size

    def depth(self, tower: Tower) -> int:
        """Number of transformer layers of a tower."""
        return self.tower_config(tower).num_hidden_layers

    def tokens(self, tower: Tower) -> int:
        """Longest token sequence a tower sees."""
        config = self.tower_config(tower)
        if tower == "text":
            return config.max_position_embeddings
        return self.model.vision_model.embeddings.num_positions

    @property
    def embedding_dim(self) -> int:
        """Size D of the shared feature space."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels the vision tower expects."""
        size = self.model.config.vision_config.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def device(self) -> torch.device:
        """Where the frozen weights are."""
        return next(self.model.parameters()).device

    def sites(self) -> list[Site]:
        """Every insertion point, vision first, then text, by layer.

        Layer -1 is the embedding (the token sequence before the first layer). `block` sites give
        a tensor in transformers 5.x and a tuple in 4.57.
        """
        found = []
        for tower in self.towers:
            width = self.width(tower)
            root = f"{tower}_model"
            found.append(
                Site(f"{tower}.embedding", tower, -1, "embedding", f"{root}.embeddings", width)
            )
            for layer in range(self.depth(tower)):
                path = f"{root}.encoder.layers.{layer}"
                name = f"{tower}.{layer}"
                found += [
                    Site(
                        f"{name}.attention", tower, layer, "attention", f"{path}.self_attn", width
                    ),
                    Site(f"{name}.mlp", tower, layer, "mlp", f"{path}.mlp", width),
                    Site(f"{name}.block", tower, layer, "block", path, width),
                    # Beside the MLP but before the norm in front of it.
                    Site(
                        f"{name}.residual",
                        tower,
                        layer,
                        "residual",
                        f"{path}.mlp",
                        width,
                        source=f"{path}.layer_norm2",
                    ),
                ]
        return found

    # -- choices and identity -----------------------------------------------------------------

    def use_attention(self, choice: AttentionChoice = "auto") -> dict[str, str]:
        """Set the attention implementation of both towers and return it per tower.

        Call it again after moving the backbone to another device.
        """
        for tower in self.towers:
            config = self.tower_config(tower)
            head = config.hidden_size // config.num_attention_heads
            picked = choice
            if choice == "auto":
                picked = choose_attention(self.tokens(tower), head, self.device)
            elif choice not in ("eager", "sdpa"):
                raise UserError(
                    f"Unknown attention implementation {choice!r}.",
                    fix="choose 'auto', 'eager' or 'sdpa'",
                )
            # Read by every attention module at call time, in transformers 4.57 and 5.x alike.
            config._attn_implementation = picked
            self.attention[tower] = picked
        return dict(self.attention)

    @property
    def fingerprint(self) -> str:
        """Hash of configuration, weights, tokenizer and preprocessing; adapters do not change it.

        Computed once and again only after the weights were written to.
        """
        return self._fingerprint.of(self)

    def identity(self) -> dict[str, Any]:
        """Settings that shape a feature, for the fingerprint."""
        return identity_of(self.model.config)

    def describe(self) -> dict[str, Any]:
        """What a run record says about the backbone."""
        return {
            "source": self.source,
            "family": self.family,
            "fingerprint": None if self.device.type == "meta" else self.fingerprint,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "embedding_dim": self.embedding_dim,
            "image_size": list(self.image_size),
            "attention": dict(self.attention),
            "towers": {
                tower: {"width": self.width(tower), "depth": self.depth(tower)}
                for tower in self.towers
            },
        }
