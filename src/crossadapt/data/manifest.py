"""The validated table of items and texts that everything else reads."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossadapt.errors import UserError, did_you_mean
from crossadapt.files import write_file

CORE_COLUMNS = ("item", "kind", "text", "group", "split")
KINDS = ("image", "video")
BUILTIN_PREFIXES = ("openmoji:",)
PARQUET_MARK = b"crossadapt.manifest"


def is_builtin(item: str) -> bool:
    """Whether an item is a name of built-in data such as ``openmoji:1F600``, not a path."""
    return item.startswith(BUILTIN_PREFIXES)


@dataclass(frozen=True, eq=False)
class Manifest:
    """An immutable table, one row per item–text pair; methods return new manifests.

    Columns: ``item`` (absolute path or built-in name), ``kind`` (``image`` or ``video``),
    ``text``, ``group`` (rows that belong together: captions of one item are positives of each
    other), ``split`` (empty when not split yet), and any number of attributes used as filters.
    An item lies in one group, a group in one split, and no (item, text) pair occurs twice.

    Args:
        table: the rows; core columns are checked and cast to strings.
        source: what it was read from, for messages.
        notes: what was decided while reading, for the summary.

    Raises:
        UserError: a rule above is broken; the message names the row or the value.
    """

    table: pa.Table
    source: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        missing = [name for name in CORE_COLUMNS if name not in self.table.column_names]
        if missing:
            raise UserError(
                f"a manifest needs the columns {', '.join(missing)}",
                where=f"columns present: {', '.join(self.table.column_names)}",
                fix="build it with read_manifest or Manifest.from_rows",
            )
        table = self.table
        for name in CORE_COLUMNS:
            column = table.column(name)
            if not (pa.types.is_string(column.type) or pa.types.is_null(column.type)):
                try:
                    column = column.cast(pa.string())
                except pa.ArrowInvalid as error:
                    raise UserError(f"column {name!r} must be text: {error}") from error
            values = column.cast(pa.string()).fill_null("")
            table = table.set_column(table.column_names.index(name), name, values)
        object.__setattr__(self, "table", table)
        self._check()

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        *,
        source: str = "",
        notes: Sequence[str] = (),
    ) -> Manifest:
        """Build a manifest from dictionaries with at least ``item`` and ``text``.

        ``kind`` defaults to ``image``, ``group`` to the item, ``split`` to none; other keys become
        attributes, missing values null. An attribute of mixed types is stored as text.
        """
        listed = [dict(row) for row in rows]
        for row in listed:
            row.setdefault("kind", "image")
            row.setdefault("group", row.get("item", ""))
            row.setdefault("split", "")
        names = list(CORE_COLUMNS)
        for row in listed:
            names += [name for name in row if name not in names]
        columns = {name: _column([row.get(name) for row in listed]) for name in names}
        return cls(pa.table(columns), source, tuple(notes))

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def texts(self) -> list[str]:
        """The text of each row."""
        return self.table.column("text").to_pylist()

    @cached_property
    def items(self) -> list[str]:
        """Distinct items in the order in which they first occur."""
        return self._coded("item")[1]

    @cached_property
    def item_index(self) -> np.ndarray:
        """For each row the position of its item in `items`: int64 (rows,)."""
        return self._coded("item")[0]

    @cached_property
    def groups(self) -> np.ndarray:
        """For each row a number naming its group, 0, 1, … by first occurrence: int64 (rows,)."""
        return self._coded("group")[0]

    @cached_property
    def group_names(self) -> list[str]:
        """The group names that the numbers in `groups` stand for."""
        return self._coded("group")[1]

    @cached_property
    def item_groups(self) -> np.ndarray:
        """For each of `items` the number of its group: int64 (items,)."""
        result = np.zeros(len(self.items), np.int64)
        result[self.item_index] = self.groups
        return result

    @cached_property
    def split_sizes(self) -> dict[str, int]:
        """Rows of each split, in the order train, val, test, others."""
        names = self.table.column("split").to_pylist()
        order = {"train": 0, "val": 1, "test": 2}
        found = sorted(set(names), key=lambda name: (order.get(name, 3), name))
        return {name: names.count(name) for name in found}

    @property
    def attributes(self) -> list[str]:
        """Names of the columns beyond the core ones."""
        return [name for name in self.table.column_names if name not in CORE_COLUMNS]

    def select(self, split: str) -> Manifest:
        """The rows of one split.

        Raises:
            UserError: there is no such split; the message lists those there are.
        """
        if split not in self.split_sizes:
            there = {name: count for name, count in self.split_sizes.items() if name}
            raise UserError(
                f"the data has no split {split!r}",
                where=self.source,
                fix=did_you_mean(split, there) if there else "no split was assigned yet",
            )
        names = np.asarray(self.table.column("split").to_pylist(), dtype=object)
        return self.take(np.flatnonzero(names == split))

    def where(self, **equal: Any) -> Manifest:
        """The rows whose attributes equal the given values, e.g. ``where(flag=False)``."""
        keep = np.ones(len(self), bool)
        for name, value in equal.items():
            if name not in self.table.column_names:
                raise UserError(
                    f"the data has no attribute {name!r}",
                    where=self.source,
                    fix=did_you_mean(name, self.table.column_names),
                )
            found = self.table.column(name).to_pylist()
            keep &= np.fromiter((entry == value for entry in found), bool, len(found))
        return self.take(np.flatnonzero(keep))

    def without(self, items: Iterable[str]) -> Manifest:
        """The rows of all other items, e.g. ``without(store.unreadable)``."""
        gone = set(items)
        keep = np.fromiter((item not in gone for item in self.items), bool, len(self.items))
        return self.take(np.flatnonzero(keep[self.item_index]))

    def take(self, rows: Sequence[int] | np.ndarray) -> Manifest:
        """The given rows, in the given order."""
        return replace(self, table=self.table.take(pa.array(np.asarray(rows, np.int64))))

    def with_splits(self, splits: Sequence[str], note: str = "") -> Manifest:
        """The same rows with another split column, and a note on how it was made."""
        index = self.table.column_names.index("split")
        table = self.table.set_column(index, "split", pa.array(list(splits), pa.string()))
        return replace(self, table=table, notes=(*self.notes, note) if note else self.notes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 hex over all rows, whatever their order.

        A row counts with its text, kind, group, split and attributes, and its item's path below
        the folder common to all items together with the file size. Moving the whole folder
        therefore changes nothing, while another picture in place of one does (nearly always).
        """
        paths = [item for item in self.items if not is_builtin(item)]
        common = os.path.commonpath([str(Path(path).parent) for path in paths]) if paths else ""
        named = {item: _identity(item, common) for item in self.items}
        columns = self.table.drop_columns(["item"]).to_pydict()
        owners = self.table.column("item").to_pylist()
        digests = []
        for row in range(len(self)):
            values = (f"{name}={columns[name][row]!r}" for name in sorted(columns))
            parts = [named[owners[row]], *values]
            digests.append(hashlib.sha256("\0".join(parts).encode()).digest())
        return hashlib.sha256(b"".join(sorted(digests))).hexdigest()

    def summary(self) -> str:
        """A few lines: how many items, texts and groups, the splits, attributes and notes."""
        lines = [
            f"{len(self.items)} items, {len(self)} texts, {len(self.group_names)} groups"
            + (f" from {self.source}" if self.source else "")
        ]
        for name in self.split_sizes:
            part = self.select(name)
            shown = name or "(no split)"
            lines.append(f"  {shown}: {len(part.items)} items, {len(part)} texts")
        if self.attributes:
            lines.append(f"  attributes: {', '.join(self.attributes)}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)

    def write(self, path: str | Path) -> Path:
        """Write the manifest as Parquet, atomically; `read_manifest` reads it back.

        Items inside the file's folder are stored relative to it, so the folder can move as one.
        """
        path = Path(path)
        folder = path.absolute().parent
        owners = [_relative(item, folder) for item in self.table.column("item").to_pylist()]
        table = self.table.set_column(
            self.table.column_names.index("item"), "item", pa.array(owners, pa.string())
        )
        metadata = {PARQUET_MARK: b"1", b"crossadapt.notes": "\n".join(self.notes).encode()}
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer)
        write_file(path, buffer.getvalue())
        return path

    def _coded(self, name: str) -> tuple[np.ndarray, list[str]]:
        coded = self.table.column(name).combine_chunks().dictionary_encode()
        return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()

    def _check(self) -> None:
        columns = {name: self.table.column(name).to_pylist() for name in CORE_COLUMNS}
        group_of: dict[str, str] = {}
        kind_of: dict[str, str] = {}
        split_of: dict[str, str] = {}
        pairs: set[tuple[str, str]] = set()
        for row, values in enumerate(zip(*columns.values(), strict=True)):
            item, kind, text, group, split = values
            where = f"row {row} of {self.source or 'the manifest'}"
            if not item or not text.strip() or not group:
                empty = "item" if not item else "group" if item and text.strip() else "text"
                raise UserError(f"empty {empty}", where=where, fix="fill it in or drop the row")
            if kind not in KINDS:
                raise UserError(
                    f"unknown kind {kind!r}", where=where, fix=did_you_mean(kind, KINDS)
                )
            if (item, text) in pairs:
                raise UserError(
                    f"the same text twice for {item}", where=where, fix="drop one of the two rows"
                )
            pairs.add((item, text))
            for known, key, value, rule in (
                (group_of, item, group, "an item belongs to one group"),
                (kind_of, item, kind, "an item has one kind"),
                (split_of, group, split, "a group lies in one split, otherwise tests leak"),
            ):
                if known.setdefault(key, value) != value:
                    raise UserError(
                        f"{key!r} has both {known[key]!r} and {value!r}: {rule}",
                        where=where,
                        fix="correct the group and split columns",
                    )


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _identity(item: str, common: str) -> str:
    if is_builtin(item):
        return item
    size = os.path.getsize(item) if os.path.isfile(item) else -1
    return f"{Path(os.path.relpath(item, common)).as_posix()}:{size}"


def _relative(item: str, folder: Path) -> str:
    if not is_builtin(item) and Path(item).is_relative_to(folder):
        return Path(item).relative_to(folder).as_posix()
    return item
