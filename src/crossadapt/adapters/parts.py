"""Sort a backbone's parameters into stem, layers and heads, from its sites and names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossadapt.errors import UserError

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone, Tower

# What precedes the blocks: in CLIP and SigLIP embedding modules, and CLIP's norm before block 0
# (spelt so in the checkpoints); in open_clip single tables and filters.
_STEM = {
    *("embeddings", "pre_layrnorm", "pre_layernorm"),
    *("conv1", "class_embedding", "positional_embedding", "token_embedding", "ln_pre"),
}


@dataclass(frozen=True)
class Parts:
    """Parameter names of a backbone, each in exactly one part, in the model's order.

    `stem` precedes the blocks (embeddings, first norm); `layers` maps (tower, layer) to the
    parameters of that block; `heads` is everything else: final norms, projections, pooling and
    linear heads, logit scale and bias.
    """

    stem: tuple[str, ...]
    layers: dict[tuple[Tower, int], tuple[str, ...]]
    heads: tuple[str, ...]


def parameter_parts(backbone: Backbone) -> Parts:
    """Sort every parameter of ``backbone.model``; works on meta-device models.

    Raises:
        UserError: a layer has no parameters, so the family's sites do not fit its model.
    """
    prefixes: dict[str, tuple[Tower, int]] = {}
    for site in backbone.sites():
        if site.kind == "block":
            prefixes[site.path + "."] = (site.tower, site.layer)
    if not prefixes:
        raise UserError(
            "this backbone has no layers of its own to train",
            where=backbone.source,
            fix="adapt one of its members alone, or use the method hada",
        )
    layers: dict[tuple[Tower, int], list[str]] = {key: [] for key in prefixes.values()}
    stem: list[str] = []
    heads: list[str] = []
    for name, _ in backbone.model.named_parameters():
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is not None:
            layers[prefixes[prefix]].append(name)
        elif any(part in _STEM for part in name.split(".")):
            stem.append(name)
        else:
            heads.append(name)
    for (tower, layer), names in layers.items():
        if not names:
            raise UserError(
                f"layer {layer} of the {tower} tower has no parameters of its own",
                where=backbone.source,
                fix="report the backbone family; its sites do not match its parameter names",
            )
    return Parts(tuple(stem), {k: tuple(v) for k, v in layers.items()}, tuple(heads))


def parameter_tower(backbone: Backbone, name: str) -> str:
    """``vision``, ``text``, ``fusion`` or ``shared`` (logit scale and so on) for a parameter name.

    Layers that the text and the fusion tower share belong to the text tower.
    """
    if ".crossattention." in name:
        return "fusion"
    first = name.partition(".")[0]
    sites = [site for site in backbone.sites() if site.tower != "fusion"]
    roots = {site.path.partition(".")[0]: site.tower for site in sites}
    if first in roots:
        return roots[first]
    # Projections stand beside the towers: CLIP's visual_projection and text_projection.
    for tower, mark in (("vision", "vis"), ("text", "text"), ("fusion", "itm")):
        if first.startswith(mark):
            return tower
    return "shared"
