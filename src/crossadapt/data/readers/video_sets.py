"""What the readers of published text-video sets share: files, rows, and the card's notes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossadapt.data.protocol_cards import CARDS, ProtocolCard
from crossadapt.data.readers.registry import VIDEO_SUFFIXES, Request
from crossadapt.errors import UserError


def holds(*names: str) -> Callable[[str], bool]:
    """Whether a source is a folder with all of these files."""
    return lambda source: all((Path(source) / name).is_file() for name in names)


@dataclass
class VideoSet:
    """Rows of one published set: looks videos up by name and counts them.

    Attributes:
        request: what the reader was asked for.
        card: the protocol; its sizes are compared at the end.
        stems: path of each video by its file name without extension.
        names: path of each video by its whole file name.
    """

    request: Request
    card: ProtocolCard
    stems: dict[str, Path]
    names: dict[str, Path]
    _found: Counter[str] = field(default_factory=Counter)
    _first_missing: str = ""

    @classmethod
    def open(cls, name: str, request: Request) -> VideoSet:
        """Walk the videos' folder, `root` or the data folder itself.

        Raises:
            UserError: columns were named, which these formats do not have.
        """
        if request.columns:
            raise UserError(
                "published data sets have fixed columns", where="columns", fix="leave columns= out"
            )
        folder = Path(request.source).absolute()
        paths = [
            Path(root) / file
            for root, folders, files in os.walk(request.root or folder, followlinks=True)
            for file in sorted(files)
            if folders.sort() is None and Path(file).suffix.lower() in VIDEO_SUFFIXES
        ]
        # The first in sorted order wins, whatever order the disk lists them in.
        stems: dict[str, Path] = {}
        names: dict[str, Path] = {}
        for path in paths:
            stems.setdefault(path.stem, path)
            names.setdefault(path.name, path)
        return cls(request, CARDS[name], stems, names)

    @property
    def folder(self) -> Path:
        """Where the annotation files are."""
        return Path(self.request.source).absolute()

    def add(
        self,
        video: str,
        texts: Sequence[Any],
        split: str,
        *,
        span: tuple[float, float] | None = None,
        stem: str | None = None,
    ) -> None:
        """Add the rows of one video; one that is not there goes to the ledger.

        Args:
            video: its name in the annotations, which becomes the group.
            texts: its sentences.
            split: train, val or test.
            span: first and last second that count, as attributes ``start`` and ``end``.
            stem: its file name without extension, where that is not `video`.
        """
        path = self.names.get(video) or self.stems.get(stem or video)
        if path is None:
            path = self.stems.get(Path(video).stem) if Path(video).suffix else None
        if path is None:
            self._first_missing = self._first_missing or video
            self.request.ledger.add(video, "missing video: no file of that name")
            return
        attributes = dict(zip(("start", "end"), span, strict=True)) if span else {}
        before = len(self.request.rows)
        self.request.add(path, texts, group=video, split=split, kind="video", attributes=attributes)
        if len(self.request.rows) > before:
            self._found[split] += 1

    def finish(self) -> None:
        """Write the card's comparison and rules into the notes.

        Raises:
            UserError: none of the videos exists.
        """
        if not self._found:
            raise UserError(
                "none of the videos named in the annotations was found",
                where=f"looked below {self.request.root or self.folder}, for example for "
                f"{self._first_missing or '?'}",
                fix="say where the videos are with root=",
            )
        self.request.notes.extend(self.card.compare(self._found))
        self.request.notes.append(f"sentences: {self.card.sentences}")
        self.request.notes.extend(self.card.notes)


def load_json(path: Path, kind: type) -> Any:
    """A JSON file whose top is a `kind`.

    Raises:
        UserError: it is not there, not JSON, or something else.
    """
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(path), fix="download it again") from (
            error
        )
    if not isinstance(content, kind):
        raise UserError(
            f"the file holds a {type(content).__name__}, expected a {kind.__name__}",
            where=str(path),
            fix="use the authors' file as it is",
        )
    return content


def lines_of(path: Path) -> list[str]:
    """The lines of a list file without blanks.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from error


def entries(
    listed: Iterable[Any], keys: Sequence[str], path: Path, request: Request
) -> Iterable[tuple[Any, ...]]:
    """The values of `keys` of each object; objects without them go to the ledger."""
    for number, entry in enumerate(listed):
        try:
            values = tuple(entry[key] for key in keys)
        except (KeyError, TypeError, IndexError):
            request.ledger.add(f"{path}#{number}", f"broken entry: it needs {', '.join(keys)}")
            continue
        yield values
