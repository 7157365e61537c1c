"""Pictures and texts to features, in batches and without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crossadapt.backbones.base import TokenBatch
from crossadapt.backbones.precision import Precision, choose_precision
from crossadapt.backbones.tokenizing import cut
from crossadapt.errors import UserError
from crossadapt.layers.token_drop import dropping

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


class Pixels(Protocol):
    """Prepared pictures by number, such as a `PixelStore` or an array (N, 3, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Picture `index`: uint8 (3, H, W), resized and cropped."""
        ...


def stack_pixels(pixels: Pixels, indices: Sequence[int] | np.ndarray) -> Tensor:
    """The given pictures as one uint8 tensor (B, 3, H, W)."""
    if isinstance(pixels, np.ndarray):
        return torch.from_numpy(pixels[np.asarray(indices)])
    return torch.from_numpy(np.stack([pixels[int(index)] for index in indices]))


def training_features(backbone: Backbone, pixels: Tensor, token_drop: float = 0.0) -> Tensor:
    """Features (B, D) of prepared pictures uint8 (B, 3, H, W), with their graph.

    Args:
        backbone: with whatever adapter is active.
        pixels: normalised here.
        token_drop: share of patch tokens dropped at random, other ones for each picture.
    """
    with patch_drop(backbone, token_drop):
        return backbone.encode_image(backbone.preprocess.normalise(pixels))


@contextmanager
def patch_drop(backbone: Backbone, share: float, together: Tensor | None = None) -> Iterator[None]:
    """Inside the block the vision tower loses a `share` of its patch tokens; 0 does nothing.

    Pictures with equal numbers in `together` (B,) lose the same places.

    Raises:
        UserError: the backbone has no one vision tower to drop patches in.
    """
    if share == 0:
        yield
        return
    model = backbone.model if backbone.shadow is None else backbone.shadow
    site = next((s for s in backbone.sites() if s.name == "vision.embedding"), None)
    if site is None:
        raise UserError(
            f"{backbone.source} has no patches to drop", where="token_drop", fix="leave it out"
        )
    with dropping(model.get_submodule(site.path), share, together):
        yield


def encode_images(
    backbone: Backbone,
    pixels: Pixels,
    batch_size: int = 128,
    precision: Precision | None = None,
) -> Tensor:
    """Features of prepared pictures: float32 (N, D), length one, on the CPU.

    Args:
        backbone: with whatever adapter is active; its dropout is off during the call.
        pixels: N pictures as uint8 (3, H, W) each; normalised here, on the fly.
        batch_size: pictures encoded at a time.
        precision: number format; chosen from the hardware when None.

    Raises:
        UserError: there are no pictures.
    """
    need(len(pixels), "pictures")
    device, precision = where(backbone, precision)
    parts = []
    with evaluating(backbone), torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            block = range(start, min(start + batch_size, len(pixels)))
            batch = backbone.preprocess.normalise(stack_pixels(pixels, block).to(device))
            with precision.autocast():
                features = backbone.encode_image(batch)
            parts.append(F.normalize(features.float(), dim=-1).cpu())
    return torch.cat(parts).clone()


def encode_texts(
    backbone: Backbone,
    texts: Sequence[str] | TokenBatch,
    batch_size: int = 256,
    precision: Precision | None = None,
    *,
    unit: bool = True,
) -> Tensor:
    """Features of texts: float32 (N, D), on the CPU, in the order given; length one if `unit`.

    Texts of similar length are encoded together and each batch is cut to its longest, so that
    little is spent on padding. Arguments as for `encode_images`; `texts` may be tokenised already.
    """
    need(len(texts.ids) if isinstance(texts, TokenBatch) else len(texts), "texts")
    tokens = texts if isinstance(texts, TokenBatch) else backbone.tokenize(texts)
    device, precision = where(backbone, precision)
    order = tokens.mask.sum(dim=1).argsort(stable=True)
    parts = []
    with evaluating(backbone), torch.inference_mode():
        for rows in order.split(batch_size):
            batch = cut(TokenBatch(tokens.ids[rows], tokens.mask[rows]))
            with precision.autocast():
                features = backbone.encode_text(batch.ids.to(device), batch.mask.to(device))
            features = features.float()
            parts.append((F.normalize(features, dim=-1) if unit else features).cpu())
    sorted_features = torch.cat(parts)
    features = torch.empty_like(sorted_features)
    features[order] = sorted_features
    return features.clone()


def need(count: int, what: str) -> None:
    """Refuse to encode nothing.

    Raises:
        UserError: `count` is 0.
    """
    if count == 0:
        raise UserError(f"there are no {what} to encode", fix="check the split and the ledger")


def where(backbone: Backbone, precision: Precision | None) -> tuple[torch.device, Precision]:
    """Device of a backbone, and the precision to use there."""
    device = next(backbone.model.parameters()).device
    return device, precision or choose_precision("auto", str(device))


@contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Adapters in evaluation mode inside the block, as they were afterwards."""
    mode = backbone.adapters.training
    backbone.adapters.eval()
    try:
        yield
    finally:
        backbone.adapters.train(mode)
