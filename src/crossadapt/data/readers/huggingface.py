"""Data sets of the Hugging Face ``datasets`` library (extra ``datasets``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossadapt.data.files import keep_bytes
from crossadapt.data.readers.columns import attributes_of, resolve, texts_of
from crossadapt.data.readers.registry import Request, register
from crossadapt.data.splits import is_split_name
from crossadapt.errors import UserError

_MARKS = ("dataset_dict.json", "state.json")


def _matches(source: str) -> bool:
    path = Path(source)
    return source.startswith("hf:") or any((path / mark).is_file() for mark in _MARKS)


@register("hf", _matches, order=2)
def read(request: Request) -> None:
    """``hf:NAME`` of the hub, or a folder written by ``save_to_disk`` (extra ``datasets``)."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "reading this needs the library `datasets`",
            where=request.source,
            fix='pip install "crossadapt[datasets]"',
        ) from error
    try:
        if Path(request.source).is_dir():
            loaded: Any = datasets.load_from_disk(request.source)
        else:
            loaded = datasets.load_dataset(request.source)
    except Exception as error:
        # The library raises its own and its dependencies' errors; all mean: not to be had.
        raise UserError(
            f"`datasets` cannot load it: {type(error).__name__}: {error}",
            where=request.source,
            fix="name a folder written by save_to_disk, or a data set the hub gives you",
        ) from error
    parts = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
    # A lone `train` is how the library calls any unsplit data, so it is not taken as a split.
    named = len(parts) > 1 and all(is_split_name(str(name)) for name in parts)
    for name, part in parts.items():
        _read_part(part, request, str(name) if named else "", str(name))


def _read_part(part: Any, request: Request, split: str, part_name: str) -> None:
    import datasets

    features = part.features
    pictures = [name for name in features if isinstance(features[name], datasets.Image)]
    wanted = dict(request.columns)
    if "item" not in wanted and len(pictures) == 1:
        wanted["item"] = pictures[0]
    columns = resolve(list(features), wanted, where=request.source)
    for name in pictures:
        # Encoded bytes, not decoded pictures: decoding happens once, later, in workers.
        part = part.cast_column(name, datasets.Image(decode=False))
    for number, record in _numbered(part):
        cell = record[columns["item"]]
        item = _item(cell)
        row_name = f"{part_name or 'row'}/{number}"
        if item is None:
            request.ledger.add(f"{request.source}:{row_name}", "no picture: the cell is empty")
            continue
        group = record.get(columns.get("group", ""))
        request.add(
            item,
            texts_of(record[columns["text"]]),
            # Stored pictures are named by their content: equal ones are one item, one group.
            group=Path(item).name if group in (None, "") else str(group),
            split=str(record.get(columns.get("split", "")) or split),
            attributes=attributes_of(record, columns),
        )


def _numbered(part: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(part)


def _item(cell: Any) -> str | None:
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return str(keep_bytes(cell, "hf"))
    return str(Path(cell).absolute()) if isinstance(cell, str) and cell else None
