"""Render the openly licensed picture sets that pico-clip is trained on.

Run it in a folder where the npm packages of `SOURCES` are installed (see README.md beside this
file)::

    python build_data.py --packages node_modules --output data

It writes ``data/images/<set>/<name>.png`` (64 x 64, white background) and ``data/manifest.parquet``
with one row per picture-caption pair. Pictures of one concept drawn by several sets share a group,
so training treats them as positives. One set, `VALIDATION`, is never trained on: as in use, the
concepts are known there and the drawing style is not. OpenMoji is never read: it is the demo's test
of an unseen drawing style.
"""

from __future__ import annotations

import argparse
import json
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py

SIZE = 64


@dataclass(frozen=True)
class Source:
    """One picture set: its npm package, kind and how often training visits a picture of it."""

    package: str
    emoji: bool
    weight: float
    drop: str = ""
    """Pattern of names left out (size and line-weight variants of one drawing)."""
    strip: str = ""
    """Pattern removed from a name before it becomes a caption."""
    unicode_only: bool = False
    """Leave out pictures that match no Unicode emoji (the set runs its words together)."""


SOURCES = (
    Source("noto", True, 2.0),
    Source("noto-v1", True, 2.0),
    Source("twemoji", True, 2.0),
    Source("emojione", True, 2.0),
    Source("emojione-monotone", True, 1.5),
    Source("fluent-emoji", True, 1.5),
    Source("fluent-emoji-flat", True, 2.0),
    Source("fluent-emoji-high-contrast", True, 1.5),
    Source("fxemoji", True, 2.0, unicode_only=True),
    Source("streamline-emojis", True, 3.0, strip=r"-\d$"),
    Source("streamline-ultimate-color", False, 1.0, strip=r"-\d$"),
    Source("streamline-freehand-color", False, 1.0, strip=r"-\d$"),
    Source("fluent-color", False, 0.7, drop=r"-(16|20|24|28|48)$", strip=r"-32$"),
    Source("flat-color-icons", False, 1.0),
    Source("icon-park", False, 0.5),
    Source("meteocons", False, 0.7, strip=r"-fill$"),
    Source("game-icons", False, 0.5),
    Source("healthicons", False, 0.3, drop=r"-(negative|outline-24px|24px)$", strip=r"-outline$"),
    Source("lucide", False, 0.4),
    Source("tabler", False, 0.2, strip=r"-filled$"),
    Source("ph", False, 0.25, drop=r"-(thin|light|bold)$", strip=r"-(fill|duotone)$"),
    Source("mdi", False, 0.2, strip=r"-(outline|variant)$"),
    Source("mingcute", False, 0.25, drop=r"-line$", strip=r"-fill$"),
)
VALIDATION = "fxemoji"
SKIN_TONE = re.compile(r"(skin-tone|-(light|medium-light|medium|medium-dark|dark)$)")
_COLUMNS = ("item", "kind", "text", "group", "split", "set", "weight")
GENERIC = frozenset({"a", "an", "the", "of", "and", "symbol", "sign", "mark", "emoji", "icon"})


def words(name: str) -> str:
    """A caption from an identifier: ``grinning-face`` or ``grinning_face`` to ``grinning face``."""
    return re.sub(r"[\s_:\-]+", " ", name.replace("+1", "thumbs up")).strip().lower()


def key(text: str) -> str:
    """What two names of one concept share: letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


class EmojiNames:
    """Labels, short codes and keywords of the Unicode emoji, from emojibase-data (MIT)."""

    def __init__(self, folder: Path) -> None:
        entries = json.loads((folder / "en/compact.json").read_text())
        self.captions: dict[str, list[str]] = {}
        shortcodes = [
            json.loads((folder / f"en/shortcodes/{name}.json").read_text())
            for name in ("github", "emojibase", "joypixels")
        ]
        self.by_key: dict[str, str] = {}
        self.by_code: dict[str, str] = {}
        for entry in entries:
            label = words(entry["label"])
            captions = [label]
            for table in shortcodes:
                found = table.get(entry["hexcode"], [])
                captions += [words(s) for s in ([found] if isinstance(found, str) else found)]
            names = list(captions)
            captions += [words(tag) for tag in entry.get("tags", [])]
            self.captions[label] = unique(captions)
            self.by_code[entry["hexcode"].replace("-FE0F", "").lower()] = label
            for name in reversed(names):
                self.by_key.setdefault(key(name), label)
        for label in self.captions:
            self.by_key[key(label)] = label


def unique(texts: list[str]) -> list[str]:
    """Non-empty texts in first-seen order."""
    return [t for t in dict.fromkeys(texts) if t and t not in GENERIC]


def keyword_tables(packages: Path) -> dict[str, dict[str, list[str]]]:
    """Keywords that the icon sets publish beside their drawings, by set and icon name."""
    tables: dict[str, dict[str, list[str]]] = {}
    lucide = packages / "lucide-static/tags.json"
    tables["lucide"] = json.loads(lucide.read_text())
    mdi = json.loads((packages / "@mdi/svg/meta.json").read_text())
    tables["mdi"] = {icon["name"]: icon["aliases"] for icon in mdi}
    return tables


def read_set(
    source: Source, packages: Path, emoji: EmojiNames, tags: dict[str, list[str]]
) -> list[tuple[str, str, str, list[str]]]:
    """Name, SVG text, concept and captions of every picture kept from one set."""
    folder = packages / "@iconify-json" / source.package
    data = json.loads((folder / "icons.json").read_text())
    chars_file = folder / "chars.json"
    chars = json.loads(chars_file.read_text()) if source.emoji and chars_file.exists() else {}
    codes = {name: code for code, name in chars.items()}
    aliases: dict[str, list[str]] = {}
    for alias, entry in data.get("aliases", {}).items():
        if set(entry) == {"parent"}:
            aliases.setdefault(entry["parent"], []).append(alias)
    kept = []
    for name, icon in data["icons"].items():
        if (source.drop and re.search(source.drop, name)) or icon.get("hidden"):
            continue
        if source.emoji and SKIN_TONE.search(name):
            continue
        plain = re.sub(source.strip, "", name) if source.strip else name
        own = [words(plain)] + [words(a) for a in aliases.get(name, [])]
        label = None
        if source.emoji:
            label = emoji.by_code.get(codes.get(name, "").replace("-fe0f", ""))
            label = label or emoji.by_key.get(key(plain))
        if label:
            own = [] if source.unicode_only else own
            captions = unique([label, *own, *emoji.captions[label]])
        elif source.unicode_only:
            continue
        else:
            captions = unique([*own, *(words(t) for t in tags.get(name, []))])
        if not captions:
            continue
        width = icon.get("width", data.get("width", 16))
        height = icon.get("height", data.get("height", 16))
        left, top = icon.get("left", data.get("left", 0)), icon.get("top", data.get("top", 0))
        side = max(width, height)
        left, top = left - (side - width) / 2, top - (side - height) / 2
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {side} {side}" width="{side}" height="{side}" '
            f'color="#000">{icon["body"]}</svg>'
        )
        kept.append((name, svg, captions[0], captions))
    return kept


def render(task: tuple[str, str]) -> str | None:
    """Draw one SVG to its file; the error text when resvg refuses it."""
    path, svg = task
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=SIZE, height=SIZE, background="#ffffff", skip_system_fonts=True
        )
    except ValueError as error:
        return f"{path}: {error}"
    Path(path).write_bytes(bytes(png))
    return None


def main() -> None:
    """Render every set and write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=Path("node_modules"))
    parser.add_argument("--output", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    emoji = EmojiNames(arguments.packages / "emojibase-data")
    tags = keyword_tables(arguments.packages)
    columns: dict[str, list] = {k: [] for k in _COLUMNS}
    tasks = []
    for source in SOURCES:
        if "openmoji" in source.package:
            raise SystemExit("OpenMoji must never be part of the training pictures")
        folder = (arguments.output / "images" / source.package).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        pictures = read_set(source, arguments.packages, emoji, tags.get(source.package, {}))
        held_out = source.package == VALIDATION
        split = "val" if held_out else "train"
        for name, svg, concept, captions in pictures:
            group = f"{concept} ({VALIDATION})" if held_out else concept
            path = str(folder / f"{name}.png")
            tasks.append((path, svg))
            for text in captions:
                row = (path, "image", text, group, split, source.package, source.weight)
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
        print(f"{source.package:32s} {len(pictures):6d} pictures", flush=True)
    with ProcessPoolExecutor() as pool:
        failures = {e.split(": ")[0]: e for e in pool.map(render, tasks, chunksize=64) if e}
    for message in failures.values():
        print("left out:", message)
    table = pa.table(columns)
    keep = pa.array([item not in failures for item in columns["item"]])
    pq.write_table(table.filter(keep), arguments.output / "manifest.parquet")
    print(f"{len(tasks) - len(failures)} pictures, {keep.true_count} pairs")


if __name__ == "__main__":
    main()
