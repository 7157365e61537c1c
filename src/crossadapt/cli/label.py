"""``crossadapt label``: labels from a few examples become an attribute of a collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from crossadapt.cli.options import parse as parse_options
from crossadapt.cli.output import json_only, table


@dataclass(frozen=True)
class LabelOptions:
    """Label a collection from a few examples, so that searches can be filtered by the label.

    Works on the stored vectors; nothing is embedded again. Writes two attributes: the label, and
    its probability as NAME_score. Labels come from --examples (a table of items of the collection)
    or from an --adapter that `crossadapt train --task few-shot` made.
    """

    collection: Annotated[str, tyro.conf.Positional]
    """Name of a collection; `crossadapt collection list` shows them."""
    name: str = "label"
    """Name of the attribute."""
    examples: Path | None = None
    """CSV, TSV or JSONL with the columns id (or item) and label; a few lines per label."""
    adapter: Path | None = None
    """Folder of a few-shot adapter, made for the collection's model."""
    view: str | None = None
    """Examples: embeddings to compare, `frozen` or an adapter's name; the default when unset."""
    text: bool = True
    """Examples: let the names of the labels count too, not only the pictures."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Examples: sentences with {} for a label's name."""
    filter: str = ""
    """Label only items that pass, such as `kind = "image"`."""
    least: float = 0.0
    """Items whose score is below this get no label."""
    overwrite: bool = False
    """Replace labels of the same name."""
    store: str | None = None
    """Folder or s3:// address of the collections; the user's own when unset."""
    wait: float = 10.0
    """Seconds to wait for another writer."""
    json: bool = False
    """Print one JSON document instead of the table."""


def parse(args: Sequence[str]) -> LabelOptions | None:
    """Options, or None when help was printed."""
    return parse_options(LabelOptions, args, "label")


def run(options: LabelOptions) -> int:
    """Label, then say how many of each."""
    from crossadapt.search.labelling import LabelJob, label_collection

    names = [f.name for f in fields(options) if f.name != "json"]
    with json_only(options.json) as show:
        report = label_collection(LabelJob(**{name: getattr(options, name) for name in names}))
        show(report.to_dict())
        if not options.json:
            rows = [[name, f"{count:,}"] for name, count in report.found.items()]
            if report.unsure:
                rows.append(["(no label)", f"{report.unsure:,}"])
            table(f"{report.rows:,} items of {report.collection}", [report.name, "items"], rows)
            if report.held_out is not None:
                print(
                    f"examples, each left out in turn: {report.held_out:.1f} % right "
                    "(alpha and beta were chosen by this)"
                )
            some = next(iter(report.found))
            print(f'filter with: {report.name} = "{some}" and {report.name}_score >= 0.5')
    return 0
