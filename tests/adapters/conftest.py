"""Fixtures of the adapter tests: a tiny backbone, and a method whose plan is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from crossadapt.adapters import registry
from crossadapt.adapters.registry import register
from crossadapt.backbones import tiny


@dataclass(frozen=True)
class FreeConfig:
    items: Any = None


@pytest.fixture
def backbone():
    return tiny("clip")


@pytest.fixture
def free(monkeypatch):
    """A config whose plan is whatever it is given: a list, or a function of the backbone."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(registry, "_BY_CONFIG", dict(registry._BY_CONFIG))

    @register("free", FreeConfig)
    def plan(backbone: Any, config: FreeConfig) -> Any:
        return config.items

    return FreeConfig
