"""CLIP: a causal text tower pooled at end-of-text, and a vision tower pooled at its class token.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
arXiv:2103.00020.
"""

from __future__ import annotations

from typing import ClassVar

from crossadapt.backbones.hf import HFBackbone


class CLIPBackbone(HFBackbone):
    """A `CLIPModel`.

    Texts are cut to the longest real length of the batch: under causal attention nothing after
    the end-of-text token can reach it, so the features equal those of texts padded to the limit.
    """

    family: ClassVar[str] = "clip"

    @property
    def embedding_dim(self) -> int:
        """Size D of the shared feature space, after both projections."""
        return self.model.config.projection_dim
