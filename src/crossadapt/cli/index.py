"""``crossadapt index``: embed pictures and clips into a collection that can be searched."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from crossadapt.cli.options import parse as parse_options
from crossadapt.cli.output import json_only


@dataclass(frozen=True)
class IndexOptions:
    """Embed pictures and videos into a collection, which `crossadapt search` and `serve` then use.

    A second run embeds only what is new or changed; after a kill or Ctrl-C the same command goes
    on where it stopped.
    """

    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders, tables (CSV, JSONL, Parquet), WebDataset .tar files, or `openmoji`."""
    collection: str
    """Name of the collection; made if there is none."""
    adapter: tuple[str, ...] = ()
    """Folders that `crossadapt train` wrote, as FOLDER or NAME=FOLDER; each becomes a view."""
    backbone: str | None = None
    """Backbone to embed with; the collection's own, the adapter's, or pico-clip."""
    frozen: bool = True
    """Also embed with the frozen model, for before and after and for the strength slider."""
    store: str | None = None
    """Folder or s3:// address of collections; your own when unset."""
    prune: bool = False
    """Drop rows whose item is not in the given paths (any more)."""
    workers: int | None = None
    """Processes that decode pictures; one per core, up to 8, when unset."""
    batch_size: int = 128
    """Pictures in one forward pass."""
    columns: Mapping[str, str] | None = None
    """Which column is which, as role to name: item, text, group, split."""
    ledger: Path | None = None
    """File that lists what failed; NAME.ledger.jsonl in the store when unset."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the encoders; bf16 where the hardware has it."""
    runtime: Literal["auto", "torch", "openvino", "onnx", "onnx-int8"] = "torch"
    """What runs the encoders of pictures; auto measures which is fastest here, behind a gate."""
    timeout: float = 60.0
    """Seconds for one picture or clip; then its worker is killed and the item given up."""
    frames: int | None = None
    """Videos: most frames kept of a clip; as the adapter was trained, or 12, when unset."""
    sampling: Literal["segments", "1fps", "starts", "head", "tail"] | None = None
    """Videos: which frames; as the adapter was trained, or segments, when unset."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print one JSON document instead of the summary."""


def parse(args: Sequence[str]) -> IndexOptions | None:
    """Options, or None when help was printed."""
    return parse_options(IndexOptions, args, "index")


def run(options: IndexOptions) -> int:
    """Embed, then say what was done."""
    from crossadapt.search.indexing import IndexJob, run_index

    renamed = {"adapter": "adapters"}
    values: dict[str, Any] = {
        renamed.get(f.name, f.name): getattr(options, f.name)
        for f in fields(options)
        if f.name != "json"
    }
    with json_only(options.json) as show:
        report = run_index(IndexJob(**values))
        show(report.to_dict())
        if not options.json:
            counts = {
                "already done": report.already,
                "embedded": report.embedded,
                "captions or attributes updated": report.updated,
                "replaced": report.replaced,
                "pruned": report.pruned,
                "duplicates": report.duplicates,
                "failed": report.failed,
            }
            said = [f"{count:,} {what}" for what, count in counts.items() if count]
            print(f"{report.found:,} items found: {', '.join(said) or 'nothing to do'}")
            print(
                f"collection {report.collection}: {report.rows:,} rows, "
                f"views {', '.join(report.views)}, in {report.store}"
            )
            if options.runtime != "torch":
                for view, choice in report.runtimes.items():
                    print(f"view {view}: runtime {choice['runtime']}, {choice['reason']}")
        if report.left_out:
            listed = ", ".join(f"{kind} ({count})" for kind, count in report.left_out.items())
            print(f"left out: {listed}" + (f"; see {report.ledger}" * bool(report.ledger)),
                  file=sys.stderr)  # fmt: skip
    return 0
