"""The model card of a few-shot adapter: its classes, its accuracy, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def make_few_shot_card(record: Mapping[str, Any]) -> str:
    """Markdown from the content of ``run.json``."""
    job, few, fit = record["job"], record["few_shot"], record["fit"]
    lines = [
        f"# {job['method']} adapter",
        "",
        f"- backbone: `{job['backbone']}`",
        f"- method: `{job['method']}`, {few['classes']} classes, {few['shots']} shots, "
        f"seed {job['seed']}",
        f"- trained values: {record['trained']:,}",
        f"- data: `{record['data']['source']}`, hash `{record['data']['fingerprint'][:16]}`",
        f"- templates: {', '.join(f'`{t}`' for t in few['templates'])}",
    ]
    if "alpha" in few:
        how = "searched on validation" if few["searched"] else "not searched"
        lines.append(f"- alpha {few['alpha']:.4g}, beta {few['beta']:.4g} ({how})")
    lines += [
        f"- cost: {fit['seconds']:.1f} s, {fit['step']} steps, ended: {fit['status']}",
        "",
        f"## Held-out `{record['held_out']}` split, protocol `{record['protocol']}`",
        "",
        "| metric | zero-shot | adapted |",
        "|---|---:|---:|",
    ]
    before, after = record["before"], record["after"]
    lines += [
        f"| {name.replace('_', ' ')} | {before[name]:.1f} | {after[name]:.1f} |"
        for name in ("harmonic_mean", "base", "novel", "accuracy", "class_accuracy")
        if name in after
    ]
    lines += [
        "",
        f"{after['items']:,} pictures of {after['classes']:,} classes.",
        "",
        "## Use",
        "",
        "```bash",
        "crossadapt label COLLECTION --name class --adapter path/to/this/folder",
        "```",
        "",
    ]
    return "\n".join(lines)
