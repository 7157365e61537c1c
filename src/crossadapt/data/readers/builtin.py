"""Built-in data by name."""

from __future__ import annotations

from pathlib import Path

from crossadapt.data import openmoji
from crossadapt.data.readers.registry import Request, register
from crossadapt.errors import UserError


@register("openmoji", lambda source: source == "openmoji" and not Path(source).exists(), order=1)
def read(request: Request) -> None:
    """The OpenMoji pictures with the names people gave them (extra ``demo``)."""
    if request.columns:
        raise UserError(
            "built-in data has fixed columns", where="columns", fix="leave columns= out"
        )
    request.rows.extend(openmoji.rows())
    request.notes.append("fixed split by code point; " + openmoji.ATTRIBUTION)
