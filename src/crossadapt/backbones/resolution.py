"""A frozen backbone at another picture size: ``SOURCE@PIXELS``.

The table of learned positions is resampled (bicubic) to the new grid of patches; the class token's
position and every other weight stay. It is what transformers computes in every call with
``interpolate_pos_encoding=True``, done once. The idea is that of Dosovitskiy et al. 2021 (arXiv
2010.11929, section 3.2). A model at another size than it was trained for is usually a bit worse
as it is; an adapter trained at that size can use the finer grid.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossadapt.backbones.hf import HFBackbone
from crossadapt.errors import UserError

_SOURCE = re.compile(r"(?P<source>.+)@(?P<pixels>\d+)")
_SIZELESS = ("fuse:", "new:")
# The table of positions in the vision tower, by family.
_TABLES = {
    "clip": "vision_model.embeddings.position_embedding.weight",
    "siglip": "vision_model.embeddings.position_embedding.weight",
    "blip": "vision_model.embeddings.position_embedding",
    "open_clip": "visual.positional_embedding",
}


def split_resolution(source: str) -> tuple[str, int | None]:
    """``("pico-clip", 72)`` of ``pico-clip@72``, ``(source, None)`` where no size is named.

    None is named by a directory that exists under the whole name, by a fused backbone (its members
    have sizes), and by ``new:``, whose file says the size.
    """
    found = _SOURCE.fullmatch(source)
    if found is None or source.startswith(_SIZELESS) or Path(source).is_dir():
        return source, None
    return found["source"], int(found["pixels"])


def at_resolution(backbone: HFBackbone, pixels: int, source: str) -> HFBackbone:
    """Change the picture size of a backbone that nothing else uses yet, in place.

    Args:
        backbone: of a family whose vision tower has one square table of positions.
        pixels: new height and width; a multiple of the patch size.
        source: what the user named, for run records and messages.

    Returns:
        The same backbone, with another fingerprint.

    Raises:
        UserError: a size that the patches do not divide, or a tower that is not square.
    """
    name = _TABLES[backbone.family]
    path, _, leaf = name.rpartition(".")
    owner = backbone.model.get_submodule(path)
    table = getattr(owner, leaf)
    height, width = backbone.image_size
    extra = int(backbone.class_token)
    grid = round((table.shape[-2] - extra) ** 0.5)
    if height != width or grid * grid != table.shape[-2] - extra:
        raise UserError(
            f"the picture size can be changed where it is square, it is {height} x {width} here",
            where=source,
            fix="leave @PIXELS out",
        )
    patch = height // grid
    if pixels < patch or pixels % patch:
        raise UserError(
            f"{pixels} pixels are no multiple of the {patch} pixels of a patch",
            where=source,
            fix=f"use {max(1, round(pixels / patch)) * patch}",
        )
    wanted = resampled(table.detach(), grid, pixels // patch, extra)
    setattr(owner, leaf, nn.Parameter(wanted, requires_grad=False))
    _note_size(backbone, pixels, pixels // patch, wanted.shape[-2])
    prepared = backbone.preprocess
    backbone.preprocess = replace(
        prepared,
        shortest_edge=prepared.shortest_edge and round(prepared.shortest_edge * pixels / height),
        resize=prepared.resize and (pixels, pixels),
        crop=prepared.crop and (pixels, pixels),
    )
    backbone.source = source
    return backbone


def resampled(table: Tensor, grid: int, wanted: int, extra: int) -> Tensor:
    """Positions (..., extra + grid^2, width) for a grid of `wanted` by `wanted` patches.

    The first `extra` positions, those of a class token, are kept.
    """
    rows = table.reshape(table.shape[-2:])
    kept, places = rows[:extra], rows[extra:]
    square = places.float().T.reshape(1, -1, grid, grid)
    square = F.interpolate(square, size=(wanted, wanted), mode="bicubic", align_corners=False)
    places = square.flatten(2)[0].T.to(table.dtype)
    return torch.cat([kept, places]).reshape(*table.shape[:-2], -1, table.shape[-1])


def _note_size(backbone: Any, pixels: int, grid: int, positions: int) -> None:
    """Write the new size to the places where the family's code reads it."""
    if backbone.family == "open_clip":
        visual = backbone.model.visual
        visual.image_size, visual.grid_size = (pixels, pixels), (grid, grid)
        towers = {"vision_cfg": {**backbone.settings["vision_cfg"], "image_size": pixels}}
        backbone.settings = {**backbone.settings, **towers}
        return
    backbone.model.config.vision_config.image_size = pixels
    embeddings = backbone.model.vision_model.embeddings
    embeddings.image_size = pixels
    embeddings.num_patches, embeddings.num_positions = grid * grid, positions
    if hasattr(embeddings, "position_ids"):
        old = embeddings.position_ids
        embeddings.position_ids = torch.arange(positions, device=old.device).expand(1, -1)
        embeddings.position_embedding.num_embeddings = positions
