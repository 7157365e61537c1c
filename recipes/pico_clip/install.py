"""Copy a finished pico-clip run into the package and write its model card.

    python recipes/pico_clip/install.py

The card is written from the run's own record and events and from the packages' licence files, so
that none of its figures is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
from build_data import SOURCES, VALIDATION

HERE = Path(__file__).resolve().parent
ASSET = HERE.parent.parent / "src/crossadapt/assets/pico-clip"
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

CARD = """\
# pico-clip

The backbone that ships with crossadapt: an ordinary Hugging Face `CLIPModel` of {parameters:,}
parameters ({size} x {size} pixels, {vision_layers} vision and {text_layers} text layers, float16),
trained from random weights on openly licensed drawings by crossadapt's own `train` command.

**It is a demonstration model, not a replacement for CLIP.** It knows icons, emoji and their names;
it has never seen a photograph. It exists so that every command runs where no model hub can be
reached.

**What the demo's gain means.** The demo adapts it to OpenMoji, which it has never seen in any form.
The *concepts* overlap: nearly every OpenMoji picture shows a Unicode emoji that other sets draw
too, under the same name. The *drawing style* does not. The zero-shot score is therefore one of an
unseen style, not of unseen concepts.

## Training

- recipe: `recipes/pico-clip.yaml`, data and teacher as in `recipes/pico_clip/README.md`
- {pictures:,} pictures with {pairs:,} picture-caption pairs; {val_pictures} pictures of one set
  (`{validation}`) held out to choose the checkpoint
- losses: multi-positive symmetric InfoNCE; cosine and relational distillation of the image features
  of an ImageNet EfficientNet-Lite2 (weights Apache-2.0, used in training only)
- {steps:,} steps of {batch} pairs, seed {seed}, {precision}, best checkpoint at step {best_step:,}
- cost: {minutes:.0f} minutes on {threads} cores, {memory:.0f} MiB, other work on the same machine

Validation on the held-out set ({val_pictures} pictures, every caption a query), in percent:

| step | text to image R@1 | R@10 | image to text R@1 | R@10 |
|---|---|---|---|---|
{curve}

## Sources and licences

Names, aliases, short codes and keywords of Unicode emoji come from `emojibase-data` (MIT); keywords
of two icon sets from `lucide-static` (ISC) and `@mdi/svg` (Apache-2.0). The drawings were rendered
from the npm packages `@iconify-json/*`; thanks to their authors:

| set | author | licence | package version | pictures |
|---|---|---|---|---|
{sources}

The sets under CC BY ask for attribution, which this table gives; changes made: rendered at
{size} x {size} pixels on white, and redrawn at random while training. The weights are published
under Apache-2.0.
"""


def source_rows(packages: Path, counts: dict[str, int]) -> str:
    """One table row per picture set, from the packages' own records."""
    rows = []
    for source in SOURCES:
        folder = packages / "@iconify-json" / source.package
        info = json.loads((folder / "info.json").read_text())
        package = json.loads((folder / "package.json").read_text())
        author, licence = info["author"], info["license"]
        rows.append(
            f"| [{info['name']}]({author.get('url', '')}) | {author['name']} | "
            f"[{licence['spdx']}]({licence.get('url', '')}) | "
            f"`{source.package}` {package['version']} | {counts.get(source.package, 0):,} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Copy the five model files and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("build/pico-clip/run"))
    parser.add_argument("--packages", type=Path, default=Path("build/pico-clip/node_modules"))
    arguments = parser.parse_args()
    backbone = arguments.run / "backbone"
    record = json.loads((backbone / "run.json").read_text())
    events = [json.loads(s) for s in (arguments.run / "events.jsonl").read_text().splitlines()]
    curve = [
        f"| {e['step']:,} | {e['t2i_r1']:.1f} | {e['t2i_r10']:.1f} "
        f"| {e['i2t_r1']:.1f} | {e['i2t_r10']:.1f} |"
        for e in events
        if e["event"] in ("zero-shot", "eval")
    ]
    table = pq.read_table(record["job"]["data"])
    sets = dict(zip(table["item"].to_pylist(), table["set"].to_pylist(), strict=True))
    counts: dict[str, int] = {}
    for name in sets.values():
        counts[name] = counts.get(name, 0) + 1
    config = json.loads((backbone / "config.json").read_text())
    fit = record["fit"]
    ASSET.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        shutil.copyfile(backbone / name, ASSET / name)
    card = CARD.format(
        parameters=record["backbone"]["parameters"],
        size=config["vision_config"]["image_size"],
        vision_layers=config["vision_config"]["num_hidden_layers"],
        text_layers=config["text_config"]["num_hidden_layers"],
        pictures=len(sets),
        pairs=len(table),
        val_pictures=counts[VALIDATION],
        validation=VALIDATION,
        steps=fit["total"],
        batch=record["recipe"]["batch_size"],
        seed=record["job"]["seed"],
        precision=record["precision"],
        best_step=fit["best_step"],
        minutes=fit["seconds"] / 60,
        threads=record["threads"],
        memory=fit["peak_memory"],
        curve="\n".join(curve),
        sources=source_rows(arguments.packages, counts),
    )
    (ASSET / "README.md").write_text(card)
    megabytes = sum(f.stat().st_size for f in ASSET.iterdir()) / 1e6
    print(f"{ASSET}: {megabytes:.1f} MB")


if __name__ == "__main__":
    main()
