"""crossadapt methods as PEFT adapters: `get_peft_model(clip, CrossAdaptConfig(method=...))`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from crossadapt.adapters.plan import Insertion
from crossadapt.adapters.registry import get_method, make_config
from crossadapt.errors import UserError
from crossadapt.integrations.peft.layers import PREFIX, CrossAdaptLayer, give_one_owner
from crossadapt.integrations.peft.view import as_backbone


class PeftTypeName(str):
    """A PEFT type that is not in PEFT's closed enum: the plain string, with the enum's `value`."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The name itself, as `PeftType.value` would give it."""
        return str(self)


CROSSADAPT = PeftTypeName("CROSSADAPT")


@dataclass
class CrossAdaptConfig(PeftConfig):
    """A crossadapt method as a PEFT configuration.

    Errors: `UserError` for an unknown method or option; a method that does not only insert modules
    (it trains the backbone's own weights, or is itself a PEFT method) is refused on injection.
    """

    method: str = field(
        default="cross-modal-adapter", metadata={"help": "Name of a registered crossadapt method."}
    )
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Options of the method; what is left out takes the method's default."},
    )
    seed: int = field(
        default=0,
        metadata={"help": "Seed of the initial weights; the global generator is not used."},
    )
    target_modules: list[str] | None = field(
        default=None, metadata={"help": "Filled in from the method's plan; leave it out."}
    )

    def __post_init__(self) -> None:
        """Resolve every option now, so that a saved adapter does not depend on later defaults."""
        super().__post_init__()
        self.peft_type = CROSSADAPT
        self.options = asdict(make_config(self.method, self.options))


class CrossAdaptTuner(BaseTuner):
    """Wraps the sites of a crossadapt plan in a CLIP or SigLIP model."""

    prefix = PREFIX
    tuner_layer_cls = CrossAdaptLayer

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Validate the whole plan of `adapter_name`'s config, then insert it into `model`."""
        config = _ours(self.peft_config[adapter_name])
        self._insertions = plan_insertions(model, config)
        paths = sorted(self._insertions)
        if config.target_modules is not None and sorted(config.target_modules) != paths:
            raise UserError(
                "the adapter was made for other modules than this model has",
                where=f"adapter {adapter_name!r}, method {config.method!r}",
                fix="load it onto the model it was trained on, or leave target_modules out",
            )
        config.target_modules = paths
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        # Whole paths only: a suffix such as "mlp" would also catch SigLIP's pooling head.
        return key in (_ours(peft_config).target_modules or ())

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target
        if not isinstance(layer, CrossAdaptLayer):
            layer = CrossAdaptLayer(target)
            self._replace_module(parent, target_name, layer, target)
        step = self._insertions.pop(current_key)
        layer.add_insertion(adapter_name, step.module, step.parallel)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT would hand on `weight` and `bias`, which attention and MLP modules do not have.
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        marker = f".{PREFIX}insertion."
        return key.replace(f"{marker}{adapter_name}.", marker)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        own = f".{PREFIX}insertion.{adapter_name}."
        expected = {name: t.shape for name, t in model.state_dict().items() if own in name}
        check_tensors(expected, {name: t.shape for name, t in state.items()}, adapter_name)
        return state


def _ours(config: PeftConfig) -> CrossAdaptConfig:
    if not isinstance(config, CrossAdaptConfig):
        raise UserError(
            f"a model holds crossadapt adapters or {type(config).__name__} adapters, not both",
            where="add_adapter",
            fix="wrap another copy of the model for the other kind",
        )
    return config


def plan_insertions(model: nn.Module, config: CrossAdaptConfig) -> dict[str, Insertion]:
    """What `config`'s method inserts into a Hugging Face model, by dotted path.

    Errors: `UserError` when the plan does anything but insert, or inserts twice along one path.
    """
    method = get_method(config.method)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(config.seed)
        plan = method.plan(as_backbone(model), make_config(config.method, config.options))
    insertions: list[Insertion] = []
    for step in plan:
        if not isinstance(step, Insertion):
            raise UserError(
                f"method {config.method!r} cannot be used through PEFT: it does not only insert",
                where=f"its plan has a step of kind {type(step).__name__}",
                fix="train it with crossadapt itself, or use PEFT's own class for a PEFT method",
            )
        if step.parallel and step.site.source:
            raise UserError(
                f"method {config.method!r} cannot be used through PEFT: it reads beside its site",
                where=step.site.name,
                fix="train it with crossadapt itself",
            )
        insertions.append(step)
    paths = [step.site.path for step in insertions]
    for path, following in pairwise(sorted(f"{path}." for path in paths)):
        if following.startswith(path):
            raise UserError(
                f"method {config.method!r} inserts twice along one path, which PEFT cannot hold",
                where=following.removesuffix("."),
                fix="attach it with crossadapt itself",
            )
    modules = give_one_owner(step.module for step in insertions)
    owned = [replace(step, module=m) for step, m in zip(insertions, modules, strict=True)]
    return dict(zip(paths, owned, strict=True))


def check_tensors(
    expected: dict[str, Iterable[int]], found: dict[str, Iterable[int]], adapter_name: str
) -> None:
    """Raise `UserError` unless both have the same names and shapes."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = sorted(
        name
        for name in expected.keys() & found.keys()
        if tuple(expected[name]) != tuple(found[name])
    )
    for kind, names in (("lacks", missing), ("has unexpected", extra), ("has mis-shaped", wrong)):
        if names:
            raise UserError(
                f"the file of adapter {adapter_name!r} {kind} {len(names)} tensors",
                where=names[0],
                fix="load it onto the architecture it was trained on, from its own folder",
            )


def _register() -> None:
    # PEFT's `register_peft_method` accepts members of its closed enum only, and its mappings are
    # typed for them, but any hashable key works.
    configs: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    tuners: dict[Any, Any] = PEFT_TYPE_TO_TUNER_MAPPING
    prefixes: dict[Any, str] = PEFT_TYPE_TO_PREFIX_MAPPING
    configs[CROSSADAPT] = CrossAdaptConfig
    tuners[CROSSADAPT] = CrossAdaptTuner
    prefixes[CROSSADAPT] = PREFIX


_register()
