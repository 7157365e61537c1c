"""Files to vectors: equal to one by one, whatever cannot be read, without torch in workers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from crossadapt.data.decoding import decode
from crossadapt.data.ledger import Ledger
from crossadapt.errors import UserError
from crossadapt.search.embedder import Embedder
from crossadapt.search.embedding import embed_files


@pytest.fixture(scope="module")
def embedder():
    return Embedder.open("tiny:clip", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(5):
        noise = rng.integers(0, 256, (20 + index, 30, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"no picture")
    return [folder / f"{index}.png" for index in range(5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_vectors_equal_those_of_single_pictures(embedder, files, workers) -> None:
    ledger = Ledger()
    vectors, readable = embed_files(embedder, files, workers=workers, batch_size=2, ledger=ledger)
    assert readable.tolist() == [True, True, False, True, True]
    assert not vectors[2].any()
    assert len(ledger) == 1
    for row in np.flatnonzero(readable):
        pixels = embedder.prepare(decode(files[row]))[None]
        np.testing.assert_allclose(vectors[row], embedder.pictures(pixels)[0], atol=1e-5)


def test_nothing_and_nobody(embedder) -> None:
    vectors, readable = embed_files(embedder, [])
    assert vectors.shape == (0, embedder.dim)
    assert not len(readable)
    with pytest.raises(UserError, match="no adapter named"):
        embed_files(embedder, [], "nobody")


def test_decoding_processes_do_not_load_torch() -> None:
    code = (
        "import sys, crossadapt.backbones.preprocess, crossadapt.data.worker, "
        "crossadapt.search.clips, crossadapt.search.pixel_reader; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
