"""The model card of an adapter: what it is, what it gained, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COLUMNS = (("R@1", "r1"), ("R@5", "r5"), ("R@10", "r10"), ("MdR", "median_rank"))


def make_card(record: Mapping[str, Any]) -> str:
    """Markdown from the content of ``run.json``."""
    job, fit, recipe = record["job"], record["fit"], record["recipe"]
    options = ", ".join(f"{k}={v}" for k, v in record["identity"]["config"].items()) or "none"
    scratch = job["backbone"].startswith("new:")
    title = "model trained from scratch" if scratch else f"{job['method']} adapter"
    lines = [
        f"# {title}",
        "",
        f"- backbone: `{job['backbone']}`",
        f"- method: `{job['method']}` ({options})",
        f"- trained values: {record['trained']:,} ({100 * record['share']:.2f} % of the backbone)",
        f"- data: `{record['data']['source']}`, hash `{record['data']['fingerprint'][:16]}`",
        f"- training: {fit['step']} of {fit['total']} steps, batch {recipe['batch_size']}, "
        f"{recipe['optimiser']}, lr {recipe['lr']:g}, seed {job['seed']}, {record['precision']}",
        f"- cost: {fit['seconds']:.0f} s, peak memory {fit['peak_memory']:.0f} MiB "
        f"({record['device']}, {record['threads']} threads)",
        f"- ended: {fit['status']}, best at step {fit['best_step']}",
        "",
    ]
    if record["after"] is not None:
        classified = record.get("classification") is not None
        lines += _class_table(record) if classified else _table(record)
    if not scratch:
        lines += [
            "## Use",
            "",
            "```python",
            "import crossadapt",
            "",
            f'model = crossadapt.load("{job["backbone"]}")',
            'crossadapt.load_adapter(model, "path/to/this/folder")',
            "```",
            "",
        ]
    return "\n".join(lines)


def _class_table(record: Mapping[str, Any]) -> list[str]:
    """Accuracy and macro-F1 of the linear probe and the trained model, and of every subset."""
    lines = [
        f"## Held-out `{record['held_out']}` split, classification",
        "",
        f"{record['after']['items']:,} items, {record['after']['classes']} classes, chance "
        f"{record['after']['chance']:.1f} %; 95 % bootstrap intervals.",
        "",
        "| model | accuracy | macro-F1 |",
        "|---|---|---|",
    ]
    for label, result in (("linear probe", record["before"]), ("trained", record["after"])):
        cells = [f"{result[key]:.1f}{_span(result, key)}" for key in ("accuracy", "macro_f1")]
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    lines += ["", "| modalities | linear probe | trained |", "|---|---|---|"]
    for name, found in record["classification"]["subsets"].items():
        lines.append(f"| {name} | {found['linear_probe']:.1f} | {found['trained']:.1f} |")
    said = "The linear probe is fitted to each row's modalities; the trained model is one and the"
    return [*lines, "", f"{said} same and goes without the others.", ""]


def _span(result: Mapping[str, Any], key: str) -> str:
    found = result["intervals"].get(key)
    return "" if found is None else f" [{found['low']:.1f}, {found['high']:.1f}]"


def _table(record: Mapping[str, Any]) -> list[str]:
    """Before and after on the held-out split, with the protocol's name."""
    after = record["after"]
    lines = [
        f"## Held-out `{record['held_out']}` split, protocol `{record['protocol']}`",
        "",
        f"{after['images']:,} pictures, {after['texts']:,} texts.",
        "",
        "| direction | model | " + " | ".join(label for label, _ in _COLUMNS) + " |",
        "|---|---|" + "---|" * len(_COLUMNS),
    ]
    for direction in ("text_to_image", "image_to_text"):
        for label, result in (
            ("before", record["before"]),
            ("before, resized", record.get("before_resized")),
            ("after", after),
        ):
            if result is not None:
                values = " | ".join(f"{result[direction][key]:.1f}" for _, key in _COLUMNS)
                lines.append(f"| {direction.replace('_to_', ' → ')} | {label} | {values} |")
    probe = record.get("order_probe")
    if probe is not None:
        said = ", ".join(f"{k} {v['accuracy']:.1f} %" for k, v in probe.items())
        lines += ["", f"Order probe over {probe['before']['pairs']} pairs (chance 50 %): {said}."]
    return [*lines, ""]
