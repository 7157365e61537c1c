"""From arguments to a dataclass: tyro's parsing, our errors, recipes and method options.

Two stages: ``--method`` and ``--recipe`` are looked up first, because they decide which options
exist (``--method.r``) and what their defaults are; then one parser is built and everything is read
by it. A recipe's keys are read as if they had been typed before the user's own options, so they
are checked by the same rules and anything typed wins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from crossadapt.errors import UserError, did_you_mean
from crossadapt.training.job import read_recipe

DEFAULT_METHOD = "cross-modal-adapter"
METHOD_PREFIX = "method"
HIDDEN_MAPPINGS = ("task_options",)
"""Fields that only a recipe can set."""

OptionsT = TypeVar("OptionsT")


def parse(options: type[OptionsT], args: Sequence[str], command: str) -> OptionsT | None:
    """Read `args` into the dataclass `options`; None when ``--help`` was printed.

    Raises:
        UserError: an unknown option (the nearest one is named), a missing or a wrong value.
    """
    wants_help = any(arg in ("-h", "--help") for arg in args)
    if not wants_help:
        _check_names(args, option_names(options), command)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=list(args), prog=f"crossadapt {command}")
    except SystemExit as stop:
        if not stop.code:
            return None
    raise UserError(
        "the options cannot be read:\n" + _plain(complaint.getvalue()),
        where=f"crossadapt {command} {' '.join(args)}".rstrip(),
        fix=f"see crossadapt {command} --help",
    )


def parse_with_method(
    options: type[OptionsT], args: Sequence[str], command: str
) -> tuple[OptionsT, Any] | None:
    """Like `parse`, with the options of the chosen method as ``--method.NAME``.

    `options` has a field ``method`` (the name). Returns its instance and the method's config.
    """
    from crossadapt.adapters.registry import get_method

    name = last_value(args, "--method") or default_of(options, "method")
    config_class = get_method(name).config_class
    both = dataclasses.make_dataclass(
        options.__name__,
        [
            (
                "method_options",
                Annotated[config_class, tyro.conf.arg(name=METHOD_PREFIX)],
                dataclasses.field(default_factory=config_class),
            )
        ],
        bases=(options,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": options.__doc__},
    )
    parsed: Any = parse(both, args, command)
    if parsed is None:
        return None
    own: Any = dataclasses.fields(options)  # type: ignore[arg-type]
    return options(**{f.name: getattr(parsed, f.name) for f in own}), parsed.method_options


def changed(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from its defaults: what a user has asked for."""
    plain = type(config)()
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if value != getattr(plain, name)}


def option_names(options: type) -> set[str]:
    """Every flag of a dataclass, as typed: ``--batch-size``, ``--no-resume``, ``--method.d-s``."""
    names = {"--help", "-h"}
    hidden, flags = getattr(options, "HIDDEN", frozenset()), getattr(options, "FLAGS", {})
    for field in dataclasses.fields(options):
        config: Any = field.default_factory
        if field.name == "method_options" and dataclasses.is_dataclass(config):
            # The default factory of this field is the method's config class itself.
            for sub in dataclasses.fields(config):
                flag = sub.name.replace("_", "-")
                names |= {f"--{METHOD_PREFIX}.{flag}", f"--{METHOD_PREFIX}.no-{flag}"}
        elif field.name not in hidden:
            flag = flags.get(field.name, field.name).replace("_", "-")
            names |= {f"--{flag}", f"--no-{flag}"}
    return names


def last_value(args: Sequence[str], flag: str) -> str | None:
    """The value typed after `flag` (or as ``flag=value``), the last one if repeated."""
    found = None
    for index, arg in enumerate(args):
        if arg == flag and index + 1 < len(args):
            found = args[index + 1]
        elif arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found


def default_of(options: type, field: str) -> Any:
    """The default of one field of a dataclass."""
    return next(f.default for f in dataclasses.fields(options) if f.name == field)


def find_recipe(given: str) -> Path:
    """The file meant by ``--recipe``: a path, or the bare name of a recipe that is shipped.

    Raises:
        UserError: neither exists; the nearest shipped name is given.
    """
    path = Path(given)
    if path.suffix or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UserError("no such recipe", where=given, fix="check the path, or name one of ours")
    # Installed, the recipes are inside the package; in a checkout they stand at its root.
    package = Path(__file__).resolve().parent.parent
    shipped = {
        file.stem: file
        for folder in (package.parent.parent / "recipes", package / "recipes")
        for file in folder.glob("*.yaml")
    }
    if given not in shipped:
        raise UserError("no such recipe", where=given, fix=did_you_mean(given, shipped))
    return shipped[given]


def with_recipe(
    args: Sequence[str], options: type, smoke: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """`args` with the keys of ``--recipe`` (and of ``--smoke``) in front of them.

    Args:
        args: what was typed.
        options: the dataclass whose fields are the known keys.
        smoke: what ``--smoke`` means when the recipe has no part ``smoke`` of its own.

    Returns:
        The arguments, and the values of `options`' hidden fields, which cannot be typed.

    Raises:
        UserError: the file is missing, is not a mapping, or has a key that is no option.
    """
    given = last_value(args, "--recipe")
    path = find_recipe(given) if given is not None else Path("--smoke")
    content = read_recipe(path) if given is not None else {}
    short = content.pop("smoke", None) or smoke
    if "--smoke" in args:
        content |= short
    hidden = {k: content.pop(k) or {} for k in HIDDEN_MAPPINGS if k in content}
    return [*recipe_args(content, options, path), *args], hidden


def recipe_args(recipe: Mapping[str, Any], options: type, path: Path) -> list[str]:
    """A recipe as arguments; ``method_options`` holds what is typed as ``--method.NAME``."""
    known = {f.name for f in dataclasses.fields(options)} - {"recipe_file", "smoke"}
    known |= {"method_options"}
    args: list[str] = []
    for key, value in recipe.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UserError(
                f"unknown key {key!r} in the recipe", where=str(path), fix=did_you_mean(name, known)
            )
        if name == "method_options":
            for sub, subvalue in (value or {}).items():
                args += _as_args(f"{METHOD_PREFIX}.", str(sub), subvalue)
        else:
            args += _as_args("", name, value)
    return args


def _as_args(prefix: str, name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{prefix}{flag}" if value else f"--{prefix}no-{flag}"]
    if isinstance(value, Mapping):
        value = [word for pair in value.items() for word in pair]
    if isinstance(value, list | tuple):
        return [f"--{prefix}{flag}", *map(str, value)]
    return [f"--{prefix}{flag}", str(value)]


def _check_names(args: Sequence[str], known: set[str], command: str) -> None:
    """Name the nearest option ourselves: with an option missing too, tyro would not."""
    for arg in args:
        typed = arg.partition("=")[0]
        if not typed.startswith("--") or typed == "--":
            continue
        if typed.replace("_", "-") not in known:
            raise UserError(
                f"unknown option {typed}",
                where=f"crossadapt {command}",
                fix=f"{did_you_mean(typed, known - {'-h'})} See crossadapt {command} --help.",
            )


def _plain(box: str) -> str:
    """Tyro's message without its frame, its title and its pointer to the help text."""
    inside = [line.strip("│| ") for line in box.splitlines() if line.startswith(("│", "|"))]
    kept = []
    for line in inside:
        if line.startswith("For full helptext"):
            break
        if line.strip("─-"):
            kept.append(f"  {line}")
    return "\n".join(kept) or box.strip()
