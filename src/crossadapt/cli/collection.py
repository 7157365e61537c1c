"""``crossadapt collection``: look after stored collections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from crossadapt.cli.options import parse as parse_options
from crossadapt.cli.output import json_only, table
from crossadapt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from crossadapt.search.collection import Collections

Name = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True)
class ListOptions:
    """List the collections of a store."""

    store: str = ""
    """Folder or s3://bucket/path; $CROSSADAPT_STORE or a folder in your home unless given."""
    json: bool = False
    """Print one JSON document instead of the table."""


@dataclass(frozen=True)
class StatsOptions:
    """Show rows, views, size, version, index and its measured recall."""

    name: Name
    """The collection."""
    store: str = ""
    """Folder or s3://bucket/path; $CROSSADAPT_STORE or a folder in your home unless given."""
    json: bool = False
    """Print one JSON document instead of the table."""


@dataclass(frozen=True)
class MaintainOptions:
    """Merge files, build or extend the index, measure its recall, forget old versions."""

    name: Name
    """The collection."""
    recall: float = 0.95
    """Share of the exact ten nearest that the index has to find, on average."""
    keep_hours: float = 1.0
    """Versions older than this are forgotten; a server refreshes far more often."""
    wait: float = 10.0
    """Seconds to wait for another writer."""
    store: str = ""
    """Folder or s3://bucket/path; $CROSSADAPT_STORE or a folder in your home unless given."""
    json: bool = False
    """Print one JSON document instead of the table."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a collection to a Parquet file, or its vectors to npy files."""

    name: Name
    """The collection."""
    output: Annotated[Path, tyro.conf.Positional]
    """FILE.parquet for everything; a folder for VIEW.npy and VIEW.ids.txt."""
    filter: str = ""
    """Only rows that pass, such as 'year >= 2020'."""
    overwrite: bool = False
    """Replace what is there."""
    store: str = ""
    """Folder or s3://bucket/path; $CROSSADAPT_STORE or a folder in your home unless given."""
    json: bool = False
    """Print one JSON document instead of a line."""


@dataclass(frozen=True)
class ImportOptions:
    """Read a Parquet file into a new or an existing collection."""

    file: Annotated[Path, tyro.conf.Positional]
    """An exported file, or any with columns id and vector; other columns become attributes."""
    name: Name
    """The collection."""
    backbone: str = ""
    """For a file that was not exported here: the model its vectors were made with."""
    wait: float = 10.0
    """Seconds to wait for another writer."""
    store: str = ""
    """Folder or s3://bucket/path; $CROSSADAPT_STORE or a folder in your home unless given."""
    json: bool = False
    """Print one JSON document instead of a line."""


@dataclass(frozen=True)
class DropOptions:
    """Delete a collection; the items themselves are not touched."""

    name: Name
    """The collection."""
    yes: bool = False
    """Do not ask."""
    wait: float = 10.0
    """Seconds to wait for another writer."""
    store: str = ""
    """Folder or s3://bucket/path; $CROSSADAPT_STORE or a folder in your home unless given."""
    json: bool = False
    """Print one JSON document instead of a line."""


SUBCOMMANDS: dict[str, type] = {
    "list": ListOptions,
    "stats": StatsOptions,
    "maintain": MaintainOptions,
    "export": ExportOptions,
    "import": ImportOptions,
    "drop": DropOptions,
}


def parse(args: Sequence[str]) -> Any:
    """Options of the named subcommand, or None when help was printed."""
    if not args:
        raise UserError("collection needs a subcommand", fix=", ".join(SUBCOMMANDS))
    if args[0] in ("-h", "--help"):
        print(f"usage: crossadapt collection {{{','.join(SUBCOMMANDS)}}} [options]\n")
        for name, options in SUBCOMMANDS.items():
            first = (options.__doc__ or "").splitlines()[0]
            print(f"  {name:<9} {first[0].lower()}{first[1:].rstrip('.')}")
        print("\nSee crossadapt collection stats --help.")
        return None
    if args[0] not in SUBCOMMANDS:
        raise UserError(
            "unknown subcommand",
            where=f"crossadapt collection {args[0]}",
            fix=did_you_mean(args[0], SUBCOMMANDS),
        )
    return parse_options(SUBCOMMANDS[args[0]], args[1:], f"collection {args[0]}")


def run(options: Any) -> int:
    """Run the chosen subcommand."""
    from crossadapt.search.collection import Collections

    actions = {
        ListOptions: _list,
        StatsOptions: _stats,
        MaintainOptions: _maintain,
        ExportOptions: _export,
        ImportOptions: _import,
        DropOptions: _drop,
    }
    collections = Collections(options.store or None, wait=getattr(options, "wait", 10.0))
    with json_only(options.json) as show:
        show(actions[type(options)](collections, options))
    return 0


def _list(collections: Collections, options: ListOptions) -> Any:
    found, rows = [], []
    for name in collections.names():
        try:
            stats = collections.open(name).stats()
        except UserError as error:  # such as a newer format: the others are listed all the same
            found.append({"name": name, "error": error.what})
            rows.append([name, "", "", "", error.what])
            continue
        found.append(stats)
        views = ", ".join(view["name"] for view in stats["views"])
        rows.append([name, f"{stats['rows']:,}", _size(stats["bytes"]), stats["index"], views])
    if not options.json:
        if rows:
            table(collections.uri, ["collection", "rows", "size", "index", "views"], rows)
        else:
            print(f"no collections in {collections.uri}")
            print("make one with: crossadapt index PATH --collection NAME")
    return found


def _stats(collections: Collections, options: StatsOptions) -> Any:
    stats = collections.open(options.name).stats()
    if not options.json:
        _show(stats)
    return stats


def _maintain(collections: Collections, options: MaintainOptions) -> Any:
    if not 0 < options.recall <= 1:
        raise UserError(
            f"--recall is {options.recall}", where="--recall", fix="give a share, such as 0.95"
        )
    if options.keep_hours < 0:
        raise UserError(f"--keep-hours is {options.keep_hours}", fix="give 0 or more")
    with collections.open(options.name, write=True) as collection:
        done = collection.maintain(recall=options.recall, keep_seconds=options.keep_hours * 3600)
    if not options.json:
        _show(done["stats"])
    return done


def _export(collections: Collections, options: ExportOptions) -> Any:
    from crossadapt.search.transfer import export_npy, export_parquet

    collection = collections.open(options.name)
    parquet = options.output.suffix == ".parquet"
    there = options.output.is_file() or (
        options.output.is_dir() and (parquet or any(options.output.iterdir()))
    )
    if there and not options.overwrite:
        raise UserError(
            "there is something already", where=str(options.output),
            fix="give another place, or --overwrite",
        )  # fmt: skip
    if parquet:
        rows = export_parquet(collection, options.output, filter=options.filter)
        done: dict[str, Any] = {"file": str(options.output), "rows": rows}
        print(f"wrote {rows:,} rows to {options.output}")
    else:
        views = export_npy(collection, options.output, filter=options.filter)
        done = {"folder": str(options.output), "views": views}
        for view, rows in views.items():
            print(f"wrote {rows:,} vectors to {options.output / f'{view}.npy'}")
    return done


def _import(collections: Collections, options: ImportOptions) -> Any:
    from crossadapt.search.transfer import import_parquet

    binding: dict[str, Any] = {}
    if options.backbone:
        from crossadapt.search.embedder import Embedder

        embedder = Embedder.open(options.backbone)
        binding = {
            "backbone": options.backbone,
            "backbone_fingerprint": embedder.backbone.fingerprint,
            "view": embedder.view("frozen"),
        }
    rows = import_parquet(collections, options.file, options.name, **binding)
    print(f"read {rows:,} rows into {options.name}")
    return {"name": options.name, "rows": rows}


def _drop(collections: Collections, options: DropOptions) -> Any:
    if options.name not in collections.names():
        collections.open(options.name)  # says which there are
    if not options.yes:
        import sys

        if not sys.stdin.isatty():
            raise UserError("nobody can be asked here", where="drop", fix="add --yes")
        if input(f"delete collection {options.name}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return {"name": options.name, "dropped": False}
    collections.drop(options.name)
    print(f"deleted {options.name}")
    return {"name": options.name, "dropped": True}


def _show(stats: dict[str, Any]) -> None:
    recall = "exact" if stats["index"] == "exact" else f"{stats['recall']:.1%} measured"
    rows = [
        ["rows", f"{stats['rows']:,}"],
        ["vectors of length", f"{stats['dim']:,}"],
        ["size", _size(stats["bytes"])],
        ["version", f"{stats['version']:,}"],
        ["index", stats["index"]],
        ["recall of the ten nearest", recall],
        ["rows not in the index", f"{stats['unindexed_rows']:,}"],
        ["model", stats["backbone"] or "unknown"],
        ["fingerprint", stats["fingerprint"][:12]],
    ]
    for view in stats["views"]:
        star = " (default)" if view["name"] == stats["default_view"] else ""
        said = f"{view['method'] or 'no adapter'}, {view['fingerprint'][:12]}"
        rows.append([f"view {view['name']}{star}", said])
    rows += [[f"attribute {name}", kind] for name, kind in stats["attributes"].items()]
    table(f"{stats['name']} in {stats['uri']}", ["", ""], rows)
    for note in stats["notes"]:
        print(f"note: {note}")


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
