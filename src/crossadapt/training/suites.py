"""Named suites: what ``crossadapt compare --suite NAME`` runs, part by part.

A suite is a YAML file in ``recipes/suites``: names of parts, each a recipe of ``compare`` with two
keys more, ``tuned`` and ``leave_out``. Registered methods that a part names in neither `methods`
nor `leave_out` take part with their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossadapt.adapters.registry import method_names
from crossadapt.errors import UserError, did_you_mean
from crossadapt.training.job import read_recipe
from crossadapt.training.method_strings import parse_contender


@dataclass(frozen=True)
class Part:
    """One data set of a suite.

    `recipe` holds options of ``compare`` by name, `methods` complete; `smoke` the changes of a
    short test; `tuned` the method strings whose learning rate is not a guess; `leave_out` why a
    registered method does not take part.
    """

    name: str
    recipe: Mapping[str, Any]
    smoke: Mapping[str, Any]
    tuned: tuple[str, ...]
    leave_out: Mapping[str, str]


def suite_files() -> dict[str, Path]:
    """The shipped suites by name, in a checkout or inside the installed package."""
    package = Path(__file__).resolve().parent.parent
    folders = (package.parent.parent / "recipes" / "suites", package / "recipes" / "suites")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def read_suite(name: str, only: Sequence[str] = ()) -> list[Part]:
    """The parts of a shipped suite, or of a YAML file.

    Args:
        name: a shipped suite, or the path of a file.
        only: names of the parts to take; all when empty.

    Raises:
        UserError: no such suite, part, method or key.
    """
    shipped = suite_files()
    path = Path(name) if name.endswith(".yaml") else shipped.get(name)
    if path is None:
        raise UserError("no such suite", where=name, fix=did_you_mean(name, shipped))
    content = read_recipe(path)
    for wanted in only:
        if wanted not in content:
            raise UserError(
                f"the suite has no part {wanted!r}",
                where=str(path),
                fix=did_you_mean(wanted, content),
            )
    return [_part(key, content[key], path) for key in content if not only or key in only]


def _part(name: str, content: Any, path: Path) -> Part:
    where = f"{path}: {name}"
    if not isinstance(content, dict) or "data" not in content:
        raise UserError("a part of a suite is a recipe with its data", where=where)
    recipe = dict(content)
    smoke, tuned = recipe.pop("smoke", None) or {}, recipe.pop("tuned", None) or []
    leave_out = recipe.pop("leave_out", None) or {}
    methods = list(recipe.get("methods") or [])
    for text in tuned:
        if text not in methods:
            raise UserError(f"{text!r} is tuned but not named", where=where, fix="name it")
    registered = method_names()
    for left in leave_out:
        if left not in registered:
            raise UserError(
                f"there is no method {left!r} to leave out",
                where=where,
                fix=did_you_mean(left, registered),
            )
    named = {parse_contender(text).method for text in methods}
    recipe["methods"] = [*methods, *(n for n in registered if n not in {*named, *leave_out})]
    return Part(name, recipe, smoke, tuple(tuned), leave_out)
