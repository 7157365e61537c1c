"""What is known about published classification sets: templates, names, and few-shot settings.

The facts are in ``class_sets.json``: file and folder names as CoOp (Zhou et al., arXiv 2109.01134)
distributes and lays out the sets, prompt templates and search ranges as in the released code of
Tip-Adapter (Zhang et al., arXiv 2111.03930).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from crossadapt.errors import UserError, did_you_mean

LABEL, CLASS_INDEX, CLASS_SET = "label", "class_index", "class_set"
"""Attributes of a manifest with classes: name of the class, its number in the data set's own
order, and the name of the set (empty when it is none of ours)."""


@dataclass(frozen=True)
class ClassSet:
    """One classification set. Defaults are those for data that nobody has published."""

    name: str = ""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Sentences with ``{}`` for the class name."""
    alpha: float = 1.17
    """Start value of the cache's weight, which Tip-Adapter-F trains with."""
    search: tuple[float, float] = (7.0, 3.0)
    """Upper ends of the search of beta and of alpha."""
    epochs: int = 20
    """Published number of epochs of Tip-Adapter-F."""
    split: str = ""
    """CoOp's split file; empty for sets that have none."""
    pictures: tuple[str, ...] = ()
    """Folders that the names in the split file start from, tried in order."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Folder names of classes to what they are called."""
    ignore: tuple[str, ...] = ()
    """Folders that are no classes."""


@cache
def class_sets() -> dict[str, ClassSet]:
    """All known sets by name."""
    content: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    )
    lists = ("templates", "search", "pictures", "ignore")
    found = {}
    for name, values in content.items():
        fields: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in values.items()}
        found[name] = ClassSet(name, **fields)
    return found


def class_set(name: str) -> ClassSet:
    """The set called `name`; the defaults for an empty name.

    Raises:
        UserError: an unknown name; the nearest is named.
    """
    if not name:
        return ClassSet()
    if name not in class_sets():
        raise UserError(
            f"there is no class set {name!r}",
            where=CLASS_SET,
            fix=did_you_mean(name, class_sets()),
        )
    return class_sets()[name]


def spoken(name: str) -> str:
    """A class name as it stands in a sentence: ``airplane_cabin`` is ``airplane cabin``."""
    return " ".join(name.replace("_", " ").split())
