"""Which reader reads which source: a small registry and the rows they all produce."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossadapt.data.ledger import Ledger
from crossadapt.data.manifest import Manifest, is_builtin
from crossadapt.data.splits import canonical
from crossadapt.errors import UserError, did_you_mean

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
        ".ppm",
        ".pgm",
        ".jp2",
        ".ico",
        ".apng",
        ".tga",
    }
)
VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg"})


@dataclass
class Request:
    """What a reader is asked for, and the rows it collects.

    Attributes:
        source: path or name as the user wrote it, without a ``hf:`` prefix.
        columns: user's mapping from our column names to those of the data.
        root: folder that relative picture names start from, or None for the reader's default.
        ledger: receives everything that is left out.
        texts_needed: whether an item without a text is left out (there is nothing to learn from
            it) or kept with an empty one (it can still be searched).
        rows: one dictionary per item–text pair.
        notes: what was decided on the way, for the summary.
    """

    source: str
    columns: Mapping[str, str]
    root: Path | None
    ledger: Ledger
    texts_needed: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _pairs: set[tuple[str, str]] = field(default_factory=set)
    _missing: set[str] = field(default_factory=set)

    def add(
        self,
        item: str | Path,
        texts: Sequence[Any],
        *,
        group: str,
        split: str = "",
        attributes: Mapping[str, Any] | None = None,
        kind: str = "",
    ) -> None:
        """Add one item with its texts; what cannot be used goes to the ledger.

        Args:
            item: absolute path, or a built-in name.
            texts: its texts; blank ones and repeats are left out.
            group: name of the group; must not depend on where the data lies.
            split: split name in any spelling, or empty.
            attributes: further values; nested ones are left out.
            kind: ``image`` or ``video``; by the file name when empty.
        """
        name = str(item)
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode("utf-8", "backslashreplace").decode()
            self.ledger.add(shown, "bad file name: it is not valid UTF-8, rename it")
            return
        if name.startswith(("http://", "https://")):
            self.ledger.add(name, "remote picture: download it first, nothing is fetched here")
            return
        if not is_builtin(name) and not Path(name).exists():
            self.ledger.add(name, "caption without image: no such file")
            return
        usable = [str(text).strip() for text in texts if isinstance(text, str) and text.strip()]
        if not usable and not self.texts_needed:
            usable = [""]
        if not usable:
            self.ledger.add(name, "image without caption: no text that is not blank")
            return
        suffix = Path(name).suffix.lower()
        kind = kind or ("video" if suffix in VIDEO_SUFFIXES else "image")
        for text in usable:
            if (name, text) in self._pairs:
                self.ledger.add(name, f"repeated row: the same text again, {text[:80]!r}")
                continue
            self._pairs.add((name, text))
            self.rows.append(
                {
                    **(attributes or {}),
                    "item": name,
                    "kind": kind,
                    "text": text,
                    "group": group,
                    "split": canonical(split),
                }
            )

    def manifest(self, source: str) -> Manifest:
        """The collected rows as a manifest.

        Raises:
            UserError: no row at all, or a single item.
        """
        listed = self.ledger.render()
        if not self.rows:
            raise UserError(
                "no item with a text was found",
                where=source,
                fix=listed or "see the data page of the documentation for the accepted layouts",
            )
        result = Manifest.from_rows(self.rows, source=source, notes=self.notes)
        if len(result.items) < 2:
            raise UserError(
                "the data holds one item only; retrieval compares an item with others",
                where=source,
                fix=listed or "add items; a few hundred are a sensible start",
            )
        return result


@dataclass(frozen=True)
class Reader:
    """One way to read a source: `matches` recognises it, `read` fills a `Request`."""

    name: str
    matches: Callable[[str], bool]
    read: Callable[[Request], None]
    doc: str
    order: int


_READERS: dict[str, Reader] = {}


def register(
    name: str, matches: Callable[[str], bool], *, order: int
) -> Callable[[Callable[[Request], None]], Callable[[Request], None]]:
    """Register a reader; in auto-detection the lowest `order` whose `matches` is true wins."""

    def wrap(read: Callable[[Request], None]) -> Callable[[Request], None]:
        doc = (read.__doc__ or "").strip().splitlines()[0]
        _READERS[name] = Reader(name, matches, read, doc, order)
        return read

    return wrap


def _in_order() -> list[Reader]:
    return sorted(_READERS.values(), key=lambda reader: reader.order)


def reader_names() -> list[str]:
    """Names of all readers, in the order in which auto-detection asks them."""
    return [reader.name for reader in _in_order()]


def get_reader(name: str) -> Reader:
    """The reader of that name.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if name not in _READERS:
        raise UserError(
            f"there is no reader {name!r}", where="reader", fix=did_you_mean(name, _READERS)
        )
    return _READERS[name]


def detect(source: str) -> Reader:
    """The reader that recognises `source`.

    Raises:
        UserError: nothing is there, or nothing recognises it.
    """
    for reader in _in_order():
        if reader.matches(source):
            return reader
    path = Path(source)
    if not path.exists():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        builtin = ["openmoji"] if len(path.parts) == 1 else []
        hint = did_you_mean(path.name, [*near, *builtin]) if near or builtin else ""
        raise UserError(
            "no such file or folder",
            where=source,
            fix=hint if hint.startswith("did") else "check the path; built-in data: openmoji",
        )
    if path.is_dir() and not any(path.iterdir()):
        raise UserError("the folder is empty", where=source, fix="put pictures and texts into it")
    if path.is_dir():
        what = "the folder holds neither metadata.csv/.jsonl/.parquet nor captions (.txt) "
        what += "beside the pictures"
    else:
        what = f"files of type {path.suffix or '(none)'} are not understood"
    raise UserError(
        what,
        where=source,
        fix="write the texts of photo.jpg to photo.txt, one a line, or make a metadata.csv with "
        "the columns file_name and text; readers: " + ", ".join(reader_names()),
    )
