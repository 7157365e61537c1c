"""Features of classes and of their examples, computed once: the towers of a cache stay frozen."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from crossadapt.backbones.precision import Precision
from crossadapt.data.class_sets import spoken
from crossadapt.data.files import cache_dir
from crossadapt.data.manifest import is_builtin
from crossadapt.errors import UserError
from crossadapt.files import make_folder, replacing
from crossadapt.layers.drawing_augmentation import POSE_ONLY
from crossadapt.layers.random_crop import RandomCrop
from crossadapt.tasks.encode import Pixels, encode_images, encode_texts

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

View = Literal["crop", "pose", "none"]
VIEWS: dict[str, Callable[[Tensor], Tensor] | None] = {
    # The published augmentation of the cache.
    "crop": RandomCrop(area=(0.5, 1.0), aspect=4 / 3, flip=0.5),
    "pose": POSE_ONLY,
    "none": None,
}


def class_texts(
    backbone: Backbone,
    names: Sequence[str],
    templates: Sequence[str],
    precision: Precision | None = None,
) -> Tensor:
    """Text features (N, C) of class names, length one, with whatever adapter is active.

    Each template's feature is normalised, their mean over templates again, as published.

    Raises:
        UserError: a template without ``{}``.
    """
    for template in templates:
        if "{}" not in template:
            raise UserError(
                f"the template {template!r} has no place for the class name",
                where="templates",
                fix="write {} where the name stands, as in 'a photo of a {}.'",
            )
    texts = [template.replace("{}", spoken(name)) for template in templates for name in names]
    found = encode_texts(backbone, texts, precision=precision)
    mean = found.view(len(templates), len(names), -1).mean(dim=0)
    return F.normalize(mean, dim=-1)


def views_of(
    backbone: Backbone,
    pixels: Pixels,
    items: Sequence[str],
    views: int,
    kind: View,
    seed: int,
    *,
    precision: Precision,
    cache: Path | Literal[False] | None = None,
) -> Tensor:
    """Features (V, N, C) of `views` random views of pictures, not normalised.

    Args:
        backbone: frozen; encoding is done once and kept in the user's cache.
        pixels: N prepared pictures.
        items: their names, for the key of the cache.
        views: V; with `kind` ``none`` all views are alike and 1 is made.
        kind: a key of `VIEWS`.
        seed: of the views.
        precision: of the encoder.
        cache: folder of the cache; None for the user's, False for none.
    """
    change = VIEWS[kind]
    count = views if change is not None else 1
    words = [backbone.fingerprint, precision.name, kind, count, seed]
    digest = hashlib.sha256(repr([words, *map(_identity, items)]).encode()).hexdigest()
    folder = None if cache is False else (cache or cache_dir()) / "features"
    path = None if folder is None else folder / f"{digest}.safetensors"
    if path is not None and path.is_file():
        try:
            return load_file(path)["views"]
        except (SafetensorError, KeyError):
            pass  # a damaged file is made again
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = torch.stack(
            [
                encode_images(backbone, pixels, precision=precision, unit=False, change=change)
                for _ in range(count)
            ]
        )
    if path is not None and folder is not None:
        make_folder(folder)
        with replacing(path) as temporary:
            save_file({"views": found}, temporary)
    return found


def _identity(item: str) -> str:
    if is_builtin(item) or not os.path.isfile(item):
        return item
    state = os.stat(item)
    return f"{item}:{state.st_size}:{state.st_mtime_ns}"
