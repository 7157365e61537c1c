"""Fixtures of all tests: no network, one thread per worker, caches in a temporary folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports a library that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Under xdist every worker keeps to one thread, or they fight for the cores."""
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches go to a folder of this session, never to the user's."""
    os.environ["CROSSADAPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def repo() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent
