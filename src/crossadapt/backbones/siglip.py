"""SigLIP and fixed-resolution SigLIP 2: attention pooling for pictures, last token for texts.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, arXiv:2303.15343;
Tschannen et al., "SigLIP 2", 2025, arXiv:2502.14786.
"""

from __future__ import annotations

from typing import ClassVar

from crossadapt.backbones.hf import HFBackbone


class SiglipBackbone(HFBackbone):
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
