"""What a method would train on a backbone, counted without attaching or allocating it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from crossadapt.adapters.parts import parameter_tower
from crossadapt.adapters.plan import (
    Companion,
    Heads,
    Insertion,
    Join,
    Override,
    Plan,
    Prompts,
    Shadow,
    Stream,
)
from crossadapt.adapters.registry import method_of
from crossadapt.adapters.validate import check_plan

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class SiteSummary:
    """One place that is adapted: values of its own, and values it shares with other sites."""

    name: str
    tower: str
    trainable: int
    shared: int


@dataclass(frozen=True)
class PlanSummary:
    """What `crossadapt plan` prints.

    Attributes:
        method: its registered name.
        config: its options.
        backbone: the backbone's source.
        trainable: trained values, shared ones counted once.
        total: parameters of the adapted model: the backbone's plus inserted ones (trained copies
            replace the originals and add none).
        share: ``trainable / total``, a fraction.
        per_tower: trained values by tower; ``shared`` holds what belongs to no single tower.
        sites: sites, parameters or tuned modules, in plan order.
    """

    method: str
    config: dict[str, Any]
    backbone: str
    trainable: int
    total: int
    share: float
    per_tower: dict[str, int]
    sites: list[SiteSummary]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def summarise(backbone: Backbone, config: Any) -> PlanSummary:
    """Count what `config`'s method would train; the backbone may be on the meta device.

    Raises:
        UserError: as `attach` would.
    """
    method = method_of(config)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        plan = method.plan(backbone, config)
        check_plan(backbone, plan, method.name)
    rows = _rows(backbone, plan)
    places = Counter(key for row in rows for key in row.parameters)
    everything = {key: p for row in rows for key, p in row.parameters.items()}
    originals = {id(p) for p in backbone.model.parameters()}
    per_tower = {"vision": 0, "text": 0, "shared": 0}
    for key, parameter in everything.items():
        towers = {row.tower for row in rows if key in row.parameters}
        tower = towers.pop() if len(towers) == 1 else "shared"
        per_tower[tower] = per_tower.get(tower, 0) + parameter.numel()
    trainable = sum(p.numel() for p in everything.values())
    total = sum(p.numel() for p in backbone.model.parameters())
    total += sum(p.numel() for key, p in everything.items() if key not in originals)
    return PlanSummary(
        method=method.name,
        config=asdict(config),
        backbone=backbone.source,
        trainable=trainable,
        total=total,
        share=trainable / total,
        per_tower=per_tower,
        sites=[row.summary(places) for row in rows],
    )


@dataclass(frozen=True)
class _Row:
    """A place and its parameters by identity (which they keep alive)."""

    name: str
    tower: str
    parameters: dict[int, nn.Parameter]

    def summary(self, places: Mapping[int, int]) -> SiteSummary:
        own = sum(p.numel() for key, p in self.parameters.items() if places[key] == 1)
        everything = sum(p.numel() for p in self.parameters.values())
        return SiteSummary(self.name, self.tower, own, everything - own)


def _rows(backbone: Backbone, plan: Plan) -> list[_Row]:
    originals = dict(backbone.model.named_parameters())
    rows: list[_Row] = []
    for item in plan:
        if isinstance(item, Insertion):
            parameters = {id(p): p for p in item.module.parameters()}
            rows.append(_Row(item.site.name, item.site.tower, parameters))
        elif isinstance(item, Heads | Stream):
            parameters = {id(p): p for p in item.module.parameters()}
            rows.append(_Row(item.name, item.site.tower, parameters))
        elif isinstance(item, Prompts):
            parameters = {id(p): p for p in item.module.parameters()}
            rows.append(_Row(f"{item.tower}.prompts", item.tower, parameters))
        elif isinstance(item, Companion):
            parameters = {id(p): p for p in item.module.parameters()}
            rows.append(_Row("companion", "shared", parameters))
        elif isinstance(item, Join):
            rows += _join_rows(item)
        elif isinstance(item, Override):
            original = originals[item.parameter]
            tower = parameter_tower(backbone, item.parameter)
            rows.append(_Row(item.parameter, tower, {id(original): original}))
        else:
            rows += _shadow_rows(backbone, item)
    return rows


def _join_rows(item: Join) -> list[_Row]:
    """One row per tower's branch of a fusion, and one for what belongs to both."""
    found: dict[str, dict[int, nn.Parameter]] = {"vision": {}, "text": {}, "shared": {}}
    for name, parameter in item.module.named_parameters():
        first, _, rest = name.partition(".")
        tower = rest.partition(".")[0] if first == "branches" else "shared"
        found[tower][id(parameter)] = parameter
    return [_Row(f"{tower}.join", tower, p) for tower, p in found.items() if p]


def _shadow_rows(backbone: Backbone, item: Shadow) -> list[_Row]:
    """One row per tuned module; tuners are small and are really built, then dropped."""
    device = next(backbone.model.parameters()).device
    with torch.random.fork_rng(devices=[]), torch.device(device):
        trained = item.trained(item.build(backbone.model))
    modules: dict[str, dict[int, nn.Parameter]] = {}
    for name, parameter in trained.items():
        modules.setdefault(name.rpartition(".")[0], {})[id(parameter)] = parameter
    return [_Row(n, parameter_tower(backbone, n), parameters) for n, parameters in modules.items()]
