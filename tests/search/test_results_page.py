"""The page of results says what the measured documents say, and they keep what was promised."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def results(repo: Path) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(repo / "scripts" / "search_results.py")))


def test_the_page_is_made_of_the_documents(results: SimpleNamespace, repo: Path) -> None:
    for path, text in results.pages(repo).items():
        assert path.read_text() == text


def test_what_was_promised_was_measured(results: SimpleNamespace) -> None:
    for name, document in results.documents().items():
        if name == "search":
            assert (document["rows"], document["dim"]) == (200_000, 512)
            assert document["filter of 1 %"]["ours, exact"]["recall_at_10"] >= 0.99
            assert document["filter of 1 %"]["ours, index"]["recall_at_10"] >= 0.99
            assert document["unfiltered"]["ours, index"]["recall_at_10"] >= 0.95
        elif name == "index_resume":
            assert document["items"] == 20_000
            assert len(document["kills"]) >= 5
            assert document["every_kill_met_the_job_at_work"]
            assert document["same_ids"]
            assert document["largest_difference"] <= 1e-6
            assert document["second_full_run"]["embedded"] == 0
        elif name == "search_million":
            assert document["through_index"]["recall_at_10"] >= 0.95
        else:
            assert name == "serve_load"
            assert (document["connections"], document["seconds"]) == (64, 30)
            assert set(document["load"]["statuses"]) == {"200"}
            assert set(document["short_queue"]["statuses"]) <= {"200", "429"}
            for side in (document["load"], document["short_queue"]):
                assert side["dropped_connections"] == side["other_results_than_alone"] == 0
