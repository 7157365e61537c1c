"""Two processes (gloo) against one on the same global batches."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tests import small_run

from crossadapt.backbones.precision import choose_precision
from crossadapt.training.events import read_events
from crossadapt.training.loop import fit


def train(folder: Path, chunk: int | None) -> dict[str, torch.Tensor]:
    # Batches of 5: the two processes get 3 and 2 rows.
    backbone, task = small_run.prepare(dropout=0.0)
    fit(
        backbone,
        task,
        small_run.recipe(epochs=1, chunk=chunk, warmup=0.0, patience=0, guard=0),
        output=folder,
        precision=choose_precision("fp32"),
        quiet=True,
    )
    return {k: v.detach() for k, v in backbone.adapters["default"].trained().items()}


def worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
        GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    torch.set_num_threads(1)
    tensors = {c: train(Path(folder) / f"two-{c}", c) for c in (None, 2)}
    torch.save(tensors, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(tmp_path)), nprocs=2)
    one = train(tmp_path / "one", None)
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for chunk in (None, 2):
        for name, wanted in one.items():
            assert torch.equal(ranks[0][chunk][name], ranks[1][chunk][name]), name
            assert torch.allclose(ranks[0][chunk][name], wanted, atol=2e-5), name
        two = read_events(tmp_path / f"two-{chunk}" / "events.jsonl")
        losses = [
            [e["loss"] for e in events if e["event"] == "step"]
            for events in (read_events(tmp_path / "one" / "events.jsonl"), two)
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        norms = [
            [e["norm"] for e in events if e["event"] == "step"]
            for events in (read_events(tmp_path / "one" / "events.jsonl"), two)
        ]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)
