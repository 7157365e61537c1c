"""Which column of a table means what, and errors that name the nearest right one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crossadapt.data.signals import SIGNALS
from crossadapt.errors import UserError, did_you_mean

ALIASES: Mapping[str, Sequence[str]] = {
    "item": (
        "item",
        "file_name",
        "filename",
        "file",
        "image",
        "image_path",
        "imagepath",
        "path",
        "filepath",
        "file_path",
        "img",
        "photo",
        "picture",
        "video",
        "video_path",
    ),
    "text": (
        "text",
        "caption",
        "captions",
        "texts",
        "sentence",
        "sentences",
        "description",
        "descriptions",
        "title",
        "raw",
    ),
    "group": ("group", "group_id", "image_id", "item_id", "video_id"),
    "split": ("split", "subset", "partition"),
    "kind": ("kind",),
}


def resolve(
    present: Sequence[str],
    wanted: Mapping[str, str],
    *,
    where: str,
    given: Sequence[str] = (),
    needed: Sequence[str] = ("item", "text"),
) -> dict[str, str]:
    """Map our column names to those of the data.

    Args:
        present: columns of the data.
        wanted: the user's mapping; its values must exist.
        where: file name for messages.
        given: our columns that are known otherwise and need not be found.
        needed: our columns that must be found.

    Returns:
        For each of our columns that was found the name of the data's column.

    Raises:
        UserError: a named column does not exist, or a needed one cannot be recognised.
    """
    found: dict[str, str] = {}
    lowered = {name.strip().lower(): name for name in reversed(present)}
    for ours, name in wanted.items():
        if name not in present:
            raise UserError(
                f"there is no column {name!r} for {ours!r}",
                where=f"{where}, columns: {', '.join(present)}",
                fix=did_you_mean(name, present),
            )
        found[ours] = name
    for ours, names in ALIASES.items():
        taken = set(found.values())
        match = next((lowered[n] for n in names if n in lowered and lowered[n] not in taken), None)
        if ours not in found and ours not in given and match is not None:
            found[ours] = match
    for ours in needed:
        if ours not in found and ours not in given:
            raise UserError(
                f"no column was recognised as the {ours}",
                where=f"{where}, columns: {', '.join(present)}",
                fix=_nearest(ours, present, set(found.values())),
            )
    return found


def _nearest(ours: str, present: Sequence[str], taken: set[str]) -> str:
    free = [name for name in present if name not in taken]
    for alias in ALIASES[ours]:
        hint = did_you_mean(alias, free) if free else ""
        if hint.startswith("did"):
            name = hint.split("'")[1]
            return f"did you mean columns={{{ours!r}: {name!r}}}?"
    return f"say which it is, e.g. columns={{{ours!r}: {(free or ['name'])[0]!r}}}"


def texts_of(value: Any) -> list[Any]:
    """The captions in a cell: a text, a list of texts, or a list of ``{"raw": text}`` objects."""
    if isinstance(value, (list, tuple)):
        return [v.get("raw") if isinstance(v, dict) else v for v in value]
    return [value if value is None or isinstance(value, str) else str(value)]


def attributes_of(record: Mapping[str, Any], used: Mapping[str, str]) -> dict[str, Any]:
    """The plain values of all columns that are not ours; nested ones but signals are left out."""
    core = set(used.values()) | set(ALIASES)
    found = {
        name: value
        for name, value in record.items()
        if name not in core and (value is None or isinstance(value, (str, int, float, bool)))
    }
    if isinstance(record.get(SIGNALS), list):
        # As text, so that a column may hold series here and file names there.
        found[SIGNALS] = json.dumps(record[SIGNALS])
    return found
