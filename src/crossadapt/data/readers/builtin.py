"""Built-in data by name."""

from __future__ import annotations

from pathlib import Path

from crossadapt.data import openmoji, openmoji_groups
from crossadapt.data.readers.registry import Request, register
from crossadapt.errors import UserError


@register("openmoji", lambda source: source == "openmoji" and not Path(source).exists(), order=1)
def read(request: Request) -> None:
    """The OpenMoji pictures with the names people gave them (extra ``demo``)."""
    _refuse_columns(request)
    request.rows.extend(openmoji.rows())
    request.notes.append("fixed split by code point; " + openmoji.ATTRIBUTION)


@register(
    openmoji_groups.NAME,
    lambda source: source == openmoji_groups.NAME and not Path(source).exists(),
    order=1,
)
def read_groups(request: Request) -> None:
    """The OpenMoji pictures with Unicode's groups as classes (extra ``demo``)."""
    _refuse_columns(request)
    request.rows.extend(openmoji_groups.rows())
    request.notes.append("fixed split by concept within each class; " + openmoji.ATTRIBUTION)


def _refuse_columns(request: Request) -> None:
    if request.columns:
        raise UserError(
            "built-in data has fixed columns", where="columns", fix="leave columns= out"
        )
