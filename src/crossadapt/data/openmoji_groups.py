"""OpenMoji's pictures sorted into Unicode's groups, as a few-shot classification set.

Groups are the subgroups of Unicode's ``emoji-test.txt`` with at least twenty drawings; which
drawing is in which, and what a group is called here, is in ``openmoji_groups.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossadapt.data.class_sets import CLASS_INDEX, CLASS_SET, LABEL
from crossadapt.data.openmoji import PREFIX, _drawings
from crossadapt.data.splits import position

NAME = "openmoji-groups"
SHARES: Mapping[str, float] = {"train": 0.6, "val": 0.1, "test": 0.3}
"""Least shares of a class's drawings, filled up in this order by whole concepts."""
_SEED = "openmoji-groups"
# Signs that tell variants of one drawing apart: woman, man, person; female, male; joiner, picture
# selector; facing right. Without them "woman running" and "man running" are one concept.
_VARIANT = frozenset({"1F469", "1F468", "1F9D1", "2640", "2642", "200D", "FE0F", "27A1"})


def concept(code: str) -> str:
    """What is left of a code without the signs of its variants; the code if nothing is left."""
    kept = [point for point in code.split("-") if point not in _VARIANT]
    return "-".join(kept) or code


def rows() -> list[dict[str, Any]]:
    """One row per drawing, ready for `Manifest.from_rows`.

    The text and the attribute ``label`` are the name of the class, ``class_index`` its number.
    Within each class whole concepts, in the order of a hash of their code points, go to train, val
    and test until each has its share: a drawing and its variants (man, woman, facing right) never
    lie in two splits. A concept is one group.

    Raises:
        UserError: the wheels of the extra ``demo`` are not installed.
    """
    content = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    drawn = _drawings()
    found = []
    for index, (key, entry) in enumerate(sorted(content.items())):
        codes = [code for code in entry["codes"].split() if code in drawn]
        for code, split in _splits(codes).items():
            found.append(
                {
                    "item": PREFIX + code,
                    "kind": "image",
                    "text": entry["name"],
                    "group": f"{key}/{concept(code)}",
                    "split": split,
                    LABEL: entry["name"],
                    CLASS_INDEX: index,
                    CLASS_SET: "openmoji_groups",
                }
            )
    return found


def _splits(codes: list[str]) -> dict[str, str]:
    """The split of each drawing of one class."""
    concepts: dict[str, list[str]] = {}
    for code in codes:
        concepts.setdefault(concept(code), []).append(code)
    order = sorted(concepts, key=lambda name: (position(name, _SEED), name))
    bounds, total = [], 0.0
    for split, share in SHARES.items():
        total += share
        bounds.append((split, total * len(codes)))
    placed: dict[str, str] = {}
    for name in order:
        split = next((s for s, bound in bounds if len(placed) < bound - 1e-9), bounds[-1][0])
        placed |= dict.fromkeys(concepts[name], split)
    return placed
