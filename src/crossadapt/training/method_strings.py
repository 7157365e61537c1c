"""Methods as people write them for a comparison: ``partial:layers=2,lr=1e-4``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from crossadapt.adapters.registry import get_method, make_config
from crossadapt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from crossadapt.backbones.hf import HFBackbone

# Training settings that a method string may carry beside the method's own options.
SETTINGS = (
    "lr",
    "epochs",
    "batch_size",
    "weight_decay",
    "warmup",
    "optimiser",
    "preset",
    "pooling",
)
# Options of the task, for clips: what a method is taught with, where others cannot use it.
TASK_SETTINGS = ("reversed_negatives",)


@dataclass(frozen=True)
class Contender:
    """A method with its options and its own training settings; `label` is what the user wrote."""

    label: str
    method: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    budget: int | None = None


def parse_contender(text: str) -> Contender:
    """Read ``name``, ``name:key=value,key=[a,b]`` or ``peft:name:key=value``.

    A key is an option of the method, one of `SETTINGS` or `TASK_SETTINGS`, or (PEFT methods with a
    rank) ``budget``: the number of trained parameters to come nearest to.

    Raises:
        UserError: unknown method or key (the nearest is named), or something that is no pair.
    """
    name, _, rest = text.strip().partition(":")
    if name == "peft":
        kind, _, rest = rest.partition(":")
        name = f"peft:{kind}"
    known = [f.name for f in fields(get_method(name).config_class)]
    extra = [
        *SETTINGS,
        *TASK_SETTINGS,
        *(["budget"] if "r" in known and name.startswith("peft:") else []),
    ]
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    budget = None
    # A comma inside [a,b] belongs to the value.
    for pair in filter(None, re.split(r",(?![^\[]*\])", rest)):
        key, equals, value = (part.strip() for part in pair.partition("="))
        key = key.replace("-", "_")
        if not equals:
            raise UserError(
                f"{pair!r} is not key=value", where=text, fix="write name:key=value,key=value"
            )
        if key in known:
            options[key] = _value(value)
        elif key == "budget" and key in extra:
            budget = _whole(value, text)
        elif key in extra:
            settings[key] = _value(value)
        else:
            raise UserError(
                f"{name} has no option {key!r}",
                where=text,
                fix=did_you_mean(key, [*known, *extra]),
            )
    make_config(name, options)
    return Contender(text.strip(), name, options, settings, budget)


def sized(contender: Contender, backbone: HFBackbone) -> Contender:
    """The contender with the rank its budget asks for; its plan is checked on the backbone."""
    from crossadapt.adapters.summary import summarise

    if contender.budget is not None:
        from crossadapt.integrations.peft import rank_for_budget

        config = make_config(contender.method, contender.options)
        rank = rank_for_budget(backbone, contender.method, contender.budget, config=config)
        contender = replace(contender, options={**contender.options, "r": rank})
    summarise(backbone, make_config(contender.method, contender.options))
    return contender


def _value(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is not a value", fix="write 8, 0.1, true or [a,b]") from error
    if isinstance(value, str):
        # YAML reads 3e-3 (no point) as text, which is what most people write.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _whole(text: str, where: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError as error:
        raise UserError(f"budget={text} is not a whole number", where=where) from error
