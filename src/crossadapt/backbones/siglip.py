"""SigLIP and fixed-resolution SigLIP 2: attention pooling for pictures, last token for texts.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, arXiv:2303.15343;
Tschannen et al., "SigLIP 2", 2025, arXiv:2502.14786.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.tower_tokens import TowerTokens


class SiglipBackbone(TowerTokens, HFBackbone):
    """A `SiglipModel`; SigLIP 2 checkpoints of one resolution are of this class too.

    Texts are always padded to the maximum length: the tower attends to padding as it did in
    training and pools the last position, so a shorter input would give other features.
    """

    family: ClassVar[str] = "siglip"
    class_token: ClassVar[bool] = False
    causal_text: ClassVar[bool] = False

    @property
    def embedding_dim(self) -> int:
        """Size D of the shared feature space: the width of the vision tower's pooling head."""
        return self.model.config.vision_config.hidden_size

    def pooled_word(self, ids: Tensor) -> int | Tensor | None:
        """The last token; pictures are pooled by an attention over all."""
        return ids.shape[1] - 1

    def hub_and_rest(
        self, tower: Literal["vision", "text"], hidden: Tensor, pooled: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The pooling head's vector of a picture, the last token of a text; see `TowerTokens`."""
        if tower == "vision":
            return pooled, hidden, mask
        return hidden[:, -1], hidden[:, :-1], mask[:, :-1]
