"""``crossadapt data``: make the built-in data sets, or look at a folder before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from crossadapt.cli.options import parse as parse_options
from crossadapt.cli.output import json_only, table
from crossadapt.errors import UserError, did_you_mean


@dataclass(frozen=True)
class OpenmojiOptions:
    """Write the built-in OpenMoji pictures and their captions to a folder.

    The folder can be looked at, changed, and given to --data like any other.
    """

    output: Path
    """Folder to make; it must not exist yet, or be empty."""


@dataclass(frozen=True)
class ClipsOptions:
    """Generate short videos of OpenMoji pictures that move, with captions, masks and facts.

    The folder can be given to --data like any other. Its split `probe` holds pairs of clips that
    run backwards into each other.
    """

    output: Path = Path("clips")
    """Folder to make; it must not exist yet, or be empty."""
    size: Literal["small", "standard"] = "small"
    """small: 1,100 clips in about a minute; standard: 6,000."""
    seed: int = 0
    """Start of every random choice; the same seed gives the same files."""


@dataclass(frozen=True)
class EventsOptions:
    """Make a classification task of generated clips: frames, text and tracks to what happens.

    Writes events.parquet into the folder: the text names the pictures in a clip, `signals` holds
    what a poor tracker reports, and `label` is the event. Give the file to --data with
    --task multimodal.
    """

    clips: Annotated[Path, tyro.conf.Positional]
    """Folder that `crossadapt data clips` made."""
    noise: float = 0.15
    """Standard deviation of the tracks' errors, in shares of the frame."""
    missing: float = 0.3
    """Probability that a track is lost in a frame."""
    seed: int = 0
    """Start of every random choice."""


@dataclass(frozen=True)
class InspectOptions:
    """Show what a data set holds: items, texts, splits, duplicates, leakage, broken files."""

    source: Annotated[str, tyro.conf.Positional]
    """Folder, table, hf:NAME, or openmoji."""
    reader: str = "auto"
    """How to read it; found out from the layout unless given."""
    quick: bool = False
    """Do not open the pictures: no check for broken ones, no search for duplicates."""
    json: bool = False
    """Print one JSON document instead of the tables."""


SUBCOMMANDS: dict[str, type] = {
    "openmoji": OpenmojiOptions,
    "clips": ClipsOptions,
    "events": EventsOptions,
    "inspect": InspectOptions,
}


def parse(args: Sequence[str]) -> Any:
    """Options of the named subcommand, or None when help was printed."""
    if not args:
        raise UserError("data needs a subcommand", fix="openmoji, clips, events or inspect")
    if args[0] in ("-h", "--help"):
        print("usage: crossadapt data {openmoji,clips,events,inspect} [options]\n")
        for name, options in SUBCOMMANDS.items():
            first = (options.__doc__ or "").splitlines()[0]
            print(f"  {name:<9} {first[0].lower()}{first[1:].rstrip('.')}")
        print("\nSee crossadapt data inspect --help.")
        return None
    if args[0] not in SUBCOMMANDS:
        raise UserError(
            "unknown subcommand",
            where=f"crossadapt data {args[0]}",
            fix=did_you_mean(args[0], SUBCOMMANDS),
        )
    return parse_options(SUBCOMMANDS[args[0]], args[1:], f"data {args[0]}")


def run(options: Any) -> int:
    """Run the chosen subcommand."""
    if isinstance(options, OpenmojiOptions):
        return _openmoji(options)
    if isinstance(options, EventsOptions):
        return _events(options)
    return _clips(options) if isinstance(options, ClipsOptions) else _inspect(options)


def _openmoji(options: OpenmojiOptions) -> int:
    from crossadapt.data import export, read_manifest

    manifest = read_manifest("openmoji")
    folder = export(manifest, options.output)
    print(manifest.summary())
    print(f"wrote {folder}")
    return 0


def _clips(options: ClipsOptions) -> int:
    from crossadapt.data.clips import make_clips

    manifest = make_clips(options.output, options.size, options.seed)
    print(manifest.summary())
    print(f"wrote {options.output}")
    return 0


def _events(options: EventsOptions) -> int:
    from crossadapt.data.clips import EVENTS_MANIFEST, write_events

    manifest = write_events(
        options.clips, noise=options.noise, missing=options.missing, seed=options.seed
    )
    print(manifest.summary())
    print(f"wrote {options.clips / EVENTS_MANIFEST}")
    return 0


def _inspect(options: InspectOptions) -> int:
    from crossadapt.data import Ledger, find_duplicates, read_manifest

    ledger = Ledger()
    with json_only(options.json) as show:
        manifest = read_manifest(options.source, reader=options.reader, ledger=ledger)
        found = None if options.quick else find_duplicates(manifest, ledger=ledger)
        show(
            {
                "source": options.source,
                "items": len(manifest.items),
                "texts": len(manifest),
                "groups": len(manifest.group_names),
                "splits": manifest.split_sizes,
                "attributes": manifest.attributes,
                "notes": list(manifest.notes),
                "fingerprint": manifest.fingerprint,
                "duplicates": found.to_dict() if found is not None else None,
                "left_out": [asdict(entry) for entry in ledger],
            }
        )
        if not options.json:
            print(manifest.summary())
            if found is not None:
                print(found.render())
            if ledger.entries:
                rows = [[entry.item, entry.stage, entry.reason] for entry in ledger]
                table("left out", ["item", "stage", "reason"], rows)
                print(ledger.render())
    return 0
