"""Where cached things live."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from crossadapt.files import write_file


def cache_dir() -> Path:
    """The cache folder: ``$CROSSADAPT_CACHE`` when set, otherwise ``~/.cache/crossadapt``.

    Everything in it can be deleted at any time; it is made again when needed.
    """
    named = os.environ.get("CROSSADAPT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "crossadapt"


def keep_bytes(content: bytes, folder: str) -> Path:
    """Store picture bytes in the cache under the hash of their content and return the path.

    Data sets that carry pictures inside a table become files this way, so that everything
    behind the readers deals with paths only.

    Args:
        content: an encoded picture (JPEG, PNG, …), as it is.
        folder: name of the folder inside the cache's ``items``.
    """
    digest = hashlib.sha256(content).hexdigest()[:32]
    path = cache_dir() / "items" / folder / digest[:2] / digest
    if not path.exists():
        write_file(path, content)
    return path
