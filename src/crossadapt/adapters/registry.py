"""Methods by name: found by file, configured by dataclass. Importing this module is cheap.

A method is the file ``crossadapt/methods/<name with underscores>.py``; it registers exactly one
name, the file name with dashes. ``peft:<kind>`` names are answered by
`crossadapt.integrations.peft`, imported only when asked for.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from crossadapt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from crossadapt.adapters.plan import Plan
    from crossadapt.backbones.base import Backbone

# A string, not an import: methods may import adapters, never the other way round.
METHODS_PACKAGE = "crossadapt.methods"
PEFT_MODULE = "crossadapt.integrations.peft"
PEFT_PREFIX = "peft:"

PlanFunction = Callable[["Backbone", Any], "Plan"]
AnyPlan = TypeVar("AnyPlan", bound=PlanFunction)


@dataclass(frozen=True)
class Method:
    """One way to adapt: its `name`, config dataclass, `plan` function and documentation text.

    `task` names the one task that can train it, where that is not decided by the data.
    """

    name: str
    config_class: type
    plan: PlanFunction
    doc: str
    task: str | None = None


_METHODS: dict[str, Method] = {}
_BY_CONFIG: dict[type, str] = {}


def register(
    name: str, config_class: type, *, task: str | None = None
) -> Callable[[AnyPlan], AnyPlan]:
    """Decorate ``plan(backbone, config) -> Plan`` with its method name and config dataclass.

    Args:
        name: the file's name with dashes.
        config_class: a frozen dataclass of options.
        task: the task that trains it, when only one can.

    Raises:
        ValueError: the name or config class is taken, or the class is not a frozen dataclass.
    """

    def wrap(plan: AnyPlan) -> AnyPlan:
        if name in _METHODS or config_class in _BY_CONFIG:
            raise ValueError(f"method {name!r} or {config_class.__name__} is registered twice")
        params = getattr(config_class, "__dataclass_params__", None)
        if params is None or not params.frozen:
            raise ValueError(f"{config_class.__name__} must be a frozen dataclass")
        module = inspect.getmodule(plan)
        doc = inspect.getdoc(module) or inspect.getdoc(plan) or ""
        _METHODS[name] = Method(name, config_class, plan, doc, task)
        _BY_CONFIG[config_class] = name
        return plan

    return wrap


def method_names() -> list[str]:
    """Names of the built-in methods, sorted; reads file names only, imports none of them."""
    package = importlib.import_module(METHODS_PACKAGE)
    files = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    return sorted({f.replace("_", "-") for f in files} | set(_METHODS))


def get_method(name: str) -> Method:
    """The method called `name`, importing its file; ``peft:<kind>`` goes to the PEFT bridge.

    Raises:
        UserError: no such method; names the nearest one.
    """
    if name.startswith(PEFT_PREFIX):
        return importlib.import_module(PEFT_MODULE).peft_method(name.removeprefix(PEFT_PREFIX))
    if name not in method_names():
        raise UserError(
            f"there is no method {name!r}",
            fix=f"{did_you_mean(name, method_names())} (PEFT's methods are 'peft:lora' and so on)",
        )
    if name not in _METHODS:
        importlib.import_module(f"{METHODS_PACKAGE}.{name.replace('-', '_')}")
    return _METHODS[name]


def method_of(config: object) -> Method:
    """The method a config instance belongs to.

    A config class that serves several names (PEFT's) has a ``method`` attribute holding the full
    name; every other class belongs to the one method that registered it.

    Raises:
        UserError: the object is not a method's config.
    """
    name = getattr(config, "method", None)
    if isinstance(name, str):
        return get_method(name)
    if type(config) not in _BY_CONFIG:
        raise UserError(
            f"{type(config).__name__} is not the config of a registered method",
            fix="use make_config(name, options) or a class such as CrossModalAdapterConfig",
        )
    return _METHODS[_BY_CONFIG[type(config)]]


def make_config(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """Build the config of method `name` from plain `options` (YAML, JSON, command line).

    Raises:
        UserError: an unknown key (the nearest key is named), a missing one, or a wrong type.
    """
    method = get_method(name)
    options = dict(options or {})
    known = {f.name: f for f in fields(method.config_class)}
    for key in options:
        if key not in known:
            raise UserError(
                f"{name} has no option {key!r}",
                fix=did_you_mean(str(key), known) if known else f"{name} takes no options",
            )
    for key, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.init and key not in options:
            raise UserError(f"{name} needs the option {key!r}", fix=f"give {key}")
    hints = typing.get_type_hints(method.config_class)
    return method.config_class(**{k: _fit(f"{name}.{k}", v, hints[k]) for k, v in options.items()})


def _fit(where: str, value: Any, hint: Any) -> Any:
    """`value` as `hint` asks (whole numbers become float, lists tuples), or a UserError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in args:
            try:
                return _fit(where, value, choice)
            except UserError:
                continue
    elif origin is typing.Literal:
        if value in args:
            return value
        near = did_you_mean(str(value), [str(a) for a in args])
        raise UserError(f"{value!r} is not a choice", where=where, fix=near)
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        inner = args[0] if args else Any
        return origin(_fit(where, v, inner) for v in value)
    elif origin is dict and isinstance(value, Mapping):
        return dict(value)
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    label = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise UserError(f"{value!r} is not of type {label}", where=where, fix=f"give a {label}")
