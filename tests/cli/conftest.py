from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.zoo import folder_of_pictures

from crossadapt.cli.main import main

QUICK = ["--backbone", "tiny:clip", "--epochs", "1", "--batch-size", "8", "--guard", "0"]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty good pictures with side-car texts."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder_of_pictures(folder, count=40, broken=0)
    return folder


@pytest.fixture(scope="session")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that the command line trained; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "photos"
    assert main(["train", "--data", str(photos), "--output", str(output), "--quiet", *QUICK]) == 0
    return output
