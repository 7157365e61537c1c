"""open_clip models: its own vision transformer and text transformer, run by its own code.

Ilharco et al., OpenCLIP, 2021; Cherti et al., "Reproducible scaling laws for contrastive
language-image learning", CVPR 2023, arXiv:2212.07143. Every model is held as a `CustomTextCLIP`,
whose towers are the submodules ``visual`` and ``text``; parameters have open_clip's names.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crossadapt.backbones.attention import AttentionChoice
from crossadapt.backbones.base import Site, Tower
from crossadapt.backbones.hf import HFBackbone
from crossadapt.errors import UserError

_ROOTS: dict[Tower, str] = {"vision": "visual", "text": "text"}


class OpenClipBackbone(HFBackbone):
    """A causal `CustomTextCLIP`: texts are cut to the longest of the batch, as CLIP's are.

    Args:
        model: a `CustomTextCLIP` of open_clip's own towers; frozen in place, and given its two
            points to hook (see `TextTokens`, `VisionTokens`), which hold no tensor.
        settings: the ``model_cfg`` it was built from.
        **rest: as for `HFBackbone`.
    """

    family: ClassVar[str] = "open_clip"

    def __init__(self, model: nn.Module, *, settings: dict[str, Any], **rest: Any) -> None:
        towers: Any = model
        towers.visual.patch_dropout = VisionTokens(towers.visual)
        towers.text.tokens = TextTokens(towers.text)
        super().__init__(model, **rest)
        self.settings = settings

    # -- encoding -----------------------------------------------------------------------------

    def image_features(self, model: Any, pixels: Tensor) -> Tensor:
        """Features of pixels (B, 3, H, W), by open_clip's vision tower."""
        return model.visual(pixels.to(model.logit_scale.dtype))

    def text_features(self, model: Any, ids: Tensor) -> Tensor:
        """Features of token ids (B, L) for any L up to the context length.

        The same steps as open_clip's text tower in the same order; that one adds its whole causal
        mask and so takes full-length texts only.
        """
        text = model.text
        mask = None if text.attn_mask is None else text.attn_mask[: ids.shape[1], : ids.shape[1]]
        x = text.ln_final(text.transformer(text.tokens(ids), attn_mask=mask))
        # `shape` rather than `len`, which a trace would take for a constant.
        x = x[torch.arange(x.shape[0], device=x.device), pooled_places(text, ids)]
        if isinstance(text.text_projection, nn.Linear):
            return text.text_projection(x)
        return x if text.text_projection is None else x @ text.text_projection

    # -- shape --------------------------------------------------------------------------------

    def tower_config(self, tower: Tower) -> Any:
        """``vision_cfg`` or ``text_cfg``; an unknown tower is a `UserError`."""
        self._root(tower)
        return SimpleNamespace(**self.settings[f"{tower}_cfg"])

    def width(self, tower: Tower) -> int:
        """Hidden size of a tower."""
        return self._transformer(tower).width

    def depth(self, tower: Tower) -> int:
        """Number of transformer layers of a tower."""
        return len(self._transformer(tower).resblocks)

    def tokens(self, tower: Tower) -> int:
        """Longest token sequence a tower sees."""
        return len(self._root(tower).positional_embedding)

    def _transformer(self, tower: Tower) -> Any:
        return self._root(tower).transformer

    def _root(self, tower: Tower) -> Any:
        if tower not in _ROOTS:
            raise UserError(
                f"An open_clip backbone has no {tower!r} tower.",
                where=self.source,
                fix="use 'vision' or 'text', or a backbone with a fusion tower",
            )
        return self.model.get_submodule(_ROOTS[tower])

    @property
    def embedding_dim(self) -> int:
        """Size D of the shared feature space."""
        return self.model.visual.output_dim

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels the vision tower expects."""
        height, width = self.model.visual.image_size
        return height, width

    def sites(self) -> list[Site]:
        """Every insertion point, vision first, then text, by layer.

        Named and ordered as everywhere; `path` follows open_clip's modules. In models with layer
        scale (``ls_init_value``) what is inserted at an attention, mlp or residual
        site is scaled too.
        """
        found = []
        for tower, root in _ROOTS.items():
            width = self.width(tower)
            point = f"{root}.patch_dropout" if tower == "vision" else f"{root}.tokens"
            found.append(Site(f"{tower}.embedding", tower, -1, "embedding", point, width))
            for layer in range(self.depth(tower)):
                path, name = f"{root}.transformer.resblocks.{layer}", f"{tower}.{layer}"
                found += [
                    Site(f"{name}.attention", tower, layer, "attention", f"{path}.attn", width),
                    Site(f"{name}.mlp", tower, layer, "mlp", f"{path}.mlp", width),
                    Site(f"{name}.block", tower, layer, "block", path, width),
                    # Beside the MLP but before the norm in front of it.
                    Site(f"{name}.residual", tower, layer, "residual", f"{path}.mlp", width,
                         source=f"{path}.ln_2"),
                ]  # fmt: skip
        return found

    # -- choices and identity -----------------------------------------------------------------

    def use_attention(self, choice: AttentionChoice = "auto") -> dict[str, str]:
        """Both towers use PyTorch's fused attention, which is all that open_clip offers.

        Raises:
            UserError: ``eager`` or an unknown name was asked for.
        """
        if choice not in ("auto", "sdpa"):
            raise UserError(
                f"An open_clip model has no {choice!r} attention.",
                where=self.source,
                fix="choose 'auto' or 'sdpa'",
            )
        self.attention = dict.fromkeys(_ROOTS, "sdpa")
        return dict(self.attention)

    def identity(self) -> dict[str, Any]:
        """Settings that shape a feature, for the fingerprint."""
        return {key: self.settings[key] for key in sorted(self.settings)}


class BidirectionalOpenClip(OpenClipBackbone):
    """The same with a text tower that is not causal: texts keep open_clip's full padded length.

    Such a tower (SigLIP's, CLIPA's) attends to padding as it did in training, so a shorter input
    would give other features.
    """

    causal_text: ClassVar[bool] = False


class TextTokens(nn.Module):
    """The tokens in front of the first text layer: token plus position embedding.

    open_clip computes them without a module of their own, so there is nothing to hook; this is
    one. It holds no tensor: the tables stay the text tower's.
    """

    text: Any

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        # Not a child: the tower would be its own descendant.
        self.__dict__["text"] = text

    @property
    def token_embedding(self) -> nn.Module:
        """The table of token vectors, as `weight` (vocabulary, width)."""
        return self.text.token_embedding

    @property
    def position_embedding(self) -> Any:
        """The table of position vectors, as `weight` (positions, width)."""
        return SimpleNamespace(weight=self.text.positional_embedding)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) to tokens (B, L, width)."""
        x = self.text.token_embedding(ids)
        return x + self.text.positional_embedding[: ids.shape[1]].to(x.dtype)


class VisionTokens(nn.Module):
    """The tokens in front of the first vision layer and its norm, class token first.

    Stands where open_clip may drop patches in training; a frozen model never does.
    """

    visual: Any

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.__dict__["visual"] = visual

    @property
    def class_embedding(self) -> Tensor:
        """The class token (width)."""
        return self.visual.class_embedding

    @property
    def patch_embedding(self) -> nn.Module:
        """The patch filters, as `weight` (width, 3, side, side)."""
        return self.visual.conv1

    def forward(self, x: Tensor) -> Tensor:
        """The tokens (B, 1 + N, width) as they are."""
        return x


def pooled_places(text: Any, ids: Tensor) -> Tensor:
    """Position (B,) that the text tower reads in each row of ids (B, L)."""
    if text.pool_type == "argmax":
        return ids.argmax(1)
    if text.pool_type == "eos":
        return (ids == text.eos_id).int().argmax(1)
    last = ids.shape[1] - 1 if text.pool_type == "last" else 0
    return torch.full((ids.shape[0],), last, device=ids.device)
