"""The first answers of a new process: bench/search_million.py starts one for each start measured.

python bench/ours/first_answer.py FOLDER EXACT_LIMIT QUERIES
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _sides import serve

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
os.environ["CROSSADAPT_CACHE"] = str(folder / "cache")

import lancedb  # noqa: E402, F401

from crossadapt.search.collection import Collections  # noqa: E402


def first() -> None:
    """Open the collection and answer one query after another."""
    collection = Collections(folder / "store", exact_limit=limit).open("bench")
    for query in np.load(folder / "queries.npy")[: int(sys.argv[3])]:
        collection.search(query, 10)


serve(first)
