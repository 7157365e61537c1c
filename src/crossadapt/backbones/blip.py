"""BLIP: two encoders for a shared space, and a text encoder that looks at pictures to match pairs.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training", 2022, arXiv:2201.12086. The text and
the fusion tower are the same layers; the fusion tower also runs their cross-attention over the
tokens of a picture and ends in a two-way head, match or no match.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crossadapt.backbones.attention import AttentionChoice
from crossadapt.backbones.base import Site, Tower
from crossadapt.backbones.fingerprint import identity_of
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.tower_tokens import TokenFeatures
from crossadapt.errors import UserError
from crossadapt.layers.fusion import fusing, key_factors
from crossadapt.layers.temporal import clips, to_clips

TEMPERATURE = 0.07
"""Of the contrastive loss: where BLIP's training started. Checkpoints do not carry theirs."""
MATCH = 1
"""Column of the matching logits that says "these belong together"."""


class BlipBackbone(HFBackbone):
    """A `BlipForImageTextRetrieval`.

    Texts are cut to the longest real length of the batch under a mask, so their features equal
    those of texts padded to any length. Beside the contract of all families it offers picture
    tokens (`encode_image_tokens`, `encode_frame_tokens`), `pool_tokens`, and the fusion tower
    (`encode_fusion`, `match`). Token sequences of pictures are the heavy half, worth keeping while
    several texts are matched with them.
    """

    family: ClassVar[str] = "blip"
    causal_text: ClassVar[bool] = False
    masked_text: ClassVar[bool] = True
    prompt_towers: ClassVar[tuple[str, ...]] = ("vision",)
    towers: ClassVar[tuple[Tower, ...]] = ("vision", "text", "fusion")

    @property
    def embedding_dim(self) -> int:
        """Size D of the shared feature space, after both projections."""
        return self.model.config.image_text_hidden_size

    @property
    def logit_scale(self) -> Tensor:
        """Log of 1 / `TEMPERATURE`, a constant scalar: the models have no such parameter."""
        return torch.tensor(-math.log(TEMPERATURE), device=self.device)

    # -- encoding -----------------------------------------------------------------------------

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to projected, un-normalised features (B, D)."""

        def run() -> Tensor:
            with self._running() as model:
                return model.vision_proj(_tokens(model, pixels.to(self.device))[:, 0])

        return self._prompted("vision", run)

    def encode_image_tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to tokens (B, 1 + patches, vision width) for the fusion
        tower, the class token first."""

        def run() -> Tensor:
            with self._running() as model:
                return _tokens(model, pixels.to(self.device))

        return self._prompted("vision", run)

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, vision width) to what `encode_image` gives for the picture, (B, D)."""
        with self._running() as model:
            return model.vision_proj(tokens[:, 0])

    def encode_frame_tokens(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) and mask (B, F) to tokens (B, F, N, width), zero where masked."""
        mask = mask.bool()
        with clips(mask):
            kept = self.encode_image_tokens(pixels.flatten(0, 1)[mask.reshape(-1)])
        return to_clips(kept, mask.to(kept.device))

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token ids and mask (B, L) to projected, un-normalised features (B, D).

        Without a mask every token is read as text.
        """
        with self._running() as model:
            hidden = self._hidden(model, ids, mask)
            return model.text_proj(hidden[:, 0])

    def image_tokens(self, pixels: Tensor) -> TokenFeatures:
        """Features of pixels (B, 3, H, W) with the class token as hub; see `TokenSource`."""
        tokens = self.encode_image_tokens(pixels)
        everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return TokenFeatures(self.pool_tokens(tokens), tokens, everywhere)

    def text_tokens(self, ids: Tensor, mask: Tensor) -> TokenFeatures:
        """Features of texts (B, L) with the class token as hub; see `TokenSource`."""
        with self._running() as model:
            hidden = self._hidden(model, ids, mask)
            return TokenFeatures(model.text_proj(hidden[:, 0]), hidden, mask.to(hidden.device))

    def encode_fusion(
        self,
        ids: Tensor,
        mask: Tensor | None,
        tokens: Tensor,
        *,
        token_mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Texts that have looked at pictures: hidden states (B, L, text width), pair by pair.

        Args:
            ids: token ids (B, L). The first token becomes the tokenizer's marker of the fusion
                tower where it has one, as in BLIP's training for retrieval.
            mask: bool (B, L); None reads every token.
            tokens: of the picture of each text (B, N, vision width), or of the frames of its clip
                (B, F, N, vision width).
            token_mask: bool, False for tokens that are not there: (B, N), or (B, F) for clips.
            weights: of the frames of clips (B, F), from `layers.fusion.frame_weights`.
        """
        start = self.tokenize.fusion_start
        if start is not None:
            ids = torch.cat([torch.full_like(ids[:, :1], start), ids[:, 1:]], 1)
        factors = None
        if tokens.dim() == 4:
            size = tokens.shape[2]
            factors = None if weights is None else key_factors(weights, size)
            token_mask = None if token_mask is None else token_mask.repeat_interleave(size, 1)
            tokens = tokens.flatten(1, 2)
        with self._running() as model, fusing(), _looking(model, factors, token_mask):
            return self._hidden(model, ids, mask, encoder_hidden_states=tokens.to(self.device))

    def match(
        self,
        ids: Tensor,
        mask: Tensor | None,
        tokens: Tensor,
        *,
        token_mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Matching logits (B, 2) of pairs; column `MATCH` says that they belong together.

        Arguments as for `encode_fusion`.
        """
        hidden = self.encode_fusion(ids, mask, tokens, token_mask=token_mask, weights=weights)
        with self._running() as model:
            return model.itm_head(hidden[:, 0])

    def _hidden(self, model: Any, ids: Tensor, mask: Tensor | None, **pictures: Tensor) -> Tensor:
        """The last hidden states of the text layers, for transformers 4.57 and 5.x alike."""
        if mask is None:
            mask = torch.ones_like(ids)
        return model.text_encoder(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device, torch.long),
            return_dict=True,
            **pictures,
        ).last_hidden_state

    def _prompted(self, tower: str, run: Callable[[], Tensor]) -> Tensor:
        return run() if self.prompting is None else self.prompting.encode(tower, run)

    # -- shape --------------------------------------------------------------------------------

    def tower_config(self, tower: Tower) -> Any:
        """Hugging Face configuration of one tower; text and fusion tower share theirs."""
        return super().tower_config("text" if tower == "fusion" else tower)

    def tokens(self, tower: Tower) -> int:
        """Longest token sequence a tower sees."""
        return super().tokens("text" if tower == "fusion" else tower)

    def sites(self) -> list[Site]:
        """Every insertion point: vision, text, then what the fusion tower has of its own.

        What stands at a text site works in the fusion tower too, because the layers are the same
        ones.
        """
        return [site for site in super().sites() if site.tower == "vision"] + self._text_sites()

    def _text_sites(self) -> list[Site]:
        width, seen = self.width("text"), self.width("vision")
        root = "text_encoder"
        text = [Site("text.embedding", "text", -1, "embedding", f"{root}.embeddings", width)]
        fusion = []
        for layer in range(self.depth("text")):
            path = f"{root}.encoder.layer.{layer}"
            name, own = f"text.{layer}", f"fusion.{layer}"
            attended, cross = f"{path}.attention.output", f"{path}.crossattention"
            mlp, end = f"{path}.output.dense", f"{path}.output"
            text += [
                Site(f"{name}.attention", "text", layer, "attention", f"{attended}.dense", width),
                Site(f"{name}.mlp", "text", layer, "mlp", mlp, width, f"{path}.intermediate"),
                Site(f"{name}.block", "text", layer, "block", path, width),
                # Behind the last norm of the layer, from behind the norm after self-attention.
                Site(f"{name}.residual", "text", layer, "residual", end, width, attended, "output"),
            ]
            behind = f"{cross}.output"
            fusion += [
                Site(
                    f"{own}.cross-attention",
                    "fusion",
                    layer,
                    "cross-attention",
                    f"{behind}.dense",
                    width,
                ),
                *(
                    Site(f"{own}.{k}", "fusion", layer, k, f"{cross}.self.{k}", width,
                         read_width=seen)
                    for k in ("key", "value")
                ),
                Site(f"{own}.residual", "fusion", layer, "residual", end, width, behind, "output"),
            ]  # fmt: skip
        return text + fusion

    def use_attention(self, choice: AttentionChoice = "auto") -> dict[str, str]:
        """Set the attention implementation of all towers; BLIP has eager attention only.

        Raises:
            UserError: another one is asked for.
        """
        if choice not in ("auto", "eager"):
            raise UserError(
                f"BLIP has no attention implementation {choice!r}.",
                where=self.source,
                fix="choose 'auto' or 'eager'",
            )
        return super().use_attention("eager")

    def identity(self) -> dict[str, Any]:
        """Settings that shape a feature, for the fingerprint.

        Three channels are fixed in BLIP, and its text tower is read at the first token.
        """
        return identity_of(self.model.config, leave_out=("num_channels", "eos_token_id"))


def _tokens(model: Any, pixels: Tensor) -> Tensor:
    return model.vision_model(pixel_values=pixels, return_dict=True).last_hidden_state


@contextmanager
def _looking(model: nn.Module, factors: Tensor | None, seen: Tensor | None) -> Iterator[None]:
    """Inside the block, cross-attention has its keys scaled and sees only some picture tokens.

    The hooks stand for the call only, behind those of adapters: keys are scaled last. They act in
    this call alone; another thread that encodes meanwhile has another batch and none of them.
    transformers 5.x takes a mask of picture tokens and drops it on the way to the attention, so
    the mask is handed over here.

    Args:
        model: with a text encoder.
        factors: on the keys, (B, N).
        seen: bool (B, N), False for tokens that are not there.
    """
    caller = get_ident()

    def scale(_module: nn.Module, _inputs: Any, keys: Tensor) -> Tensor:
        if factors is None or get_ident() != caller:
            return keys
        return keys * factors[..., None].to(keys)

    def hide(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if seen is not None and get_ident() == caller:
            states = args[0] if args else kwargs["hidden_states"]
            mask = torch.zeros(seen.shape, device=states.device, dtype=states.dtype)
            mask = mask.masked_fill(~seen.to(states.device), torch.finfo(states.dtype).min)
            kwargs["encoder_attention_mask"] = mask[:, None, None]
        return args, kwargs

    layers: Any = model.get_submodule("text_encoder.encoder.layer")
    handles = []
    for layer in layers:
        attention = layer.crossattention.self
        if factors is not None:
            handles.append(attention.key.register_forward_hook(scale))
        if seen is not None:
            handles.append(attention.register_forward_pre_hook(hide, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
