"""A collection in an object store, as the commands use it: reached by environment variables."""

from __future__ import annotations

import json

import pytest
from tests.search import pictures

import crossadapt
from crossadapt.backbones import save_backbone
from crossadapt.cli.main import main
from crossadapt.search.collection import Collections

STORE = "s3://bucket/collections"


@pytest.fixture
def reached(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that docs/collections.md names."""
    monkeypatch.setenv("AWS_ENDPOINT", bucket["aws_endpoint"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket["aws_secret_access_key"])
    monkeypatch.setenv("AWS_REGION", bucket["aws_region"])
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")


def test_index_search_and_stats(reached, tmp_path, capsys) -> None:
    folder = pictures.folder(tmp_path / "in", 24)
    model = str(save_backbone(crossadapt.load("tiny:clip"), tmp_path / "model"))

    def told(*args: str) -> dict:
        assert main([*args, "--store", STORE, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    index = ["index", str(folder), "--collection", "s", "--backbone", model, "--workers", "0"]
    first, second = told(*index), told(*index)
    assert (first["embedded"], first["rows"], first["store"]) == (24, 24, STORE)
    assert (second["already"], second["embedded"]) == (24, 0)
    found = told("search", "s", "a red square", "--k", "5", "--filter", "width > 48")
    assert len(found["hits"]) == 5
    assert all(hit["width"] > 48 for hit in found["hits"])
    like = told("search", "s", "--like", found["hits"][0]["id"], "--k", "3")
    assert found["hits"][0]["id"] not in [hit["id"] for hit in like["hits"]]
    assert told("collection", "stats", "s")["rows"] == 24
    assert Collections(STORE).names() == ["s"]
    assert told("collection", "drop", "s", "--yes")["dropped"]
    assert Collections(STORE).names() == []
