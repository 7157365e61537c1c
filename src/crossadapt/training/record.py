"""What goes into ``run.json``: plain values of settings, and versions of what decides numbers."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_DECISIVE = (
    *("crossadapt", "torch", "transformers", "accelerate", "peft", "open_clip_torch"),
    *("numpy", "Pillow"),
)


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for name in _DECISIVE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # an extra that is not installed
    return found


def to_json(value: Mapping[str, Any]) -> str:
    """Indented JSON text; what JSON does not know becomes a string."""
    return json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n"


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    found = {f.name: getattr(value, f.name) for f in fields(value)}
    found = {
        k: plain(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in found.items()
    }
    return json.loads(json.dumps(found, default=str))
