"""How deep into a tower an adapter reaches: the layers below it do not change while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossadapt.adapters.parts import parameter_parts, parameter_tower
from crossadapt.backbones.prefix import FAMILIES

if TYPE_CHECKING:
    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.base import Backbone


def frozen_layers(backbone: Backbone, adapter: AttachedAdapter) -> dict[str, int]:
    """Tower to how many of its first layers no part of `adapter` changes; 0 is left out.

    A method that works behind the layers alone leaves all of them. Prompts and tuned copies of the
    whole model (PEFT) start at the input; companions look at other views; a join works on several
    models: for these the answer is empty, and so it is for families without such towers.
    """
    if backbone.family not in FAMILIES or adapter.has_roots:
        return {}
    found: dict[str, int] = {tower: backbone.depth(tower) for tower in ("vision", "text")}

    def reach(tower: str, layer: int) -> None:
        found[tower] = min(found[tower], max(layer, 0))

    for site in adapter.reached_sites:
        reach(site.tower, site.layer)
    parts = parameter_parts(backbone)
    place = {name: key for key, names in parts.layers.items() for name in names}
    stem = set(parts.stem)
    for name in adapter.copied:
        if name in place:
            reach(*place[name])
        elif name in stem:
            tower = parameter_tower(backbone, name)
            for reached in [tower] if tower in found else list(found):
                reach(reached, 0)
    return {tower: layers for tower, layers in found.items() if layers > 0}
