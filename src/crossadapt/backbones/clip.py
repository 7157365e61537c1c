"""CLIP: a causal text tower pooled at end-of-text, and a vision tower pooled at its class token.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
arXiv:2103.00020.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.tower_tokens import TowerTokens


class CLIPBackbone(TowerTokens, HFBackbone):
    """A `CLIPModel`.

    Texts are cut to the longest real length of the batch: under causal attention nothing after
    the end-of-text token can reach it, so the features equal those of texts padded to the limit.
    """

    family: ClassVar[str] = "clip"
    pooled_patch: ClassVar[int | None] = 0

    @property
    def embedding_dim(self) -> int:
        """Size D of the shared feature space, after both projections."""
        return self.model.config.projection_dim

    def pooled_word(self, ids: Tensor) -> int | Tensor | None:
        """The first end-of-text token, found as the model finds it."""
        end = self.model.config.text_config.eos_token_id
        # Checkpoints from before transformers knew their end token have a 2 there; the end token
        # has the highest number. Integers of 32 bits, because ONNX knows no other argmax.
        marks = ids if end == 2 else ids == end
        return marks.to(torch.int).argmax(dim=-1)

    def hub_and_rest(
        self, tower: Literal["vision", "text"], hidden: Tensor, pooled: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The class token of a picture, the end token of a text; see `TowerTokens`."""
        if tower == "vision":
            return pooled, hidden[:, 1:], mask[:, 1:]
        # The end token is the last real one. It is the hub already.
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (places * mask).amax(dim=1, keepdim=True)
        return pooled, hidden, mask & (places != last)
