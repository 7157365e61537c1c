"""One server for all tests that do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from tests.search.server import making

from crossadapt.search.collection import Collections
from crossadapt.search.server.app import create_app
from crossadapt.search.server.settings import Settings


@pytest.fixture(scope="session")
def adapters(tmp_path_factory) -> dict[str, Path]:
    """Two trained adapters of the tiny backbone."""
    folder = tmp_path_factory.mktemp("adapters")
    return {name: making.make_adapter(folder / name, seed) for seed, name in enumerate("ab")}


@pytest.fixture(scope="session")
def store(tmp_path_factory, adapters) -> Path:
    """Two collections: ``shapes`` with both adapters, ``plain`` without any."""
    folder = tmp_path_factory.mktemp("store")
    home = Collections(folder / "collections")
    making.make_collection(home, "shapes", adapters, folder / "pictures")
    making.make_collection(home, "plain", {}, folder / "plain", 30)
    return folder / "collections"


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Defaults, but quick to notice a rebuilt collection."""
    return Settings(port=0, reload_seconds=0.1, max_upload=2**20, timeout=60)


@pytest.fixture(scope="session")
def app(store, settings) -> FastAPI:
    """The application over both collections."""
    return create_app(Collections(store), ["shapes", "plain"], settings)


@pytest.fixture(scope="session")
def address(app, settings) -> Iterator[str]:
    """A running server."""
    with making.serving(app, settings) as where:
        yield where


@pytest.fixture
def http(address) -> Iterator[httpx.Client]:
    """A client of the running server."""
    with making.client(address) as client:
        yield client
