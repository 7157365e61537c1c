"""How many rows the gradient cache encodes at a time when it is left to the memory."""

import pytest
import torch
from tests import small_run

from crossadapt.errors import UserError
from crossadapt.training import chunking
from crossadapt.training.config import make_recipe
from crossadapt.training.events import read_events

KEPT = {"image": 100, "text": 20}


@pytest.mark.parametrize(
    ("budget", "chunk"),
    [(1200, 10), (1199, 8), (800, 8), (799, 4), (400, 4), (399, 2), (199, 1), (99, 1), (0, 1)],
)
def test_the_whole_batch_or_the_largest_power_of_two_that_fits(budget, chunk):
    """Both streams at once in the plain pass, one of them in a chunk."""
    choice = chunking.choose(10, budget, KEPT)
    assert choice.chunk == chunk
    assert ("whole batch" in choice.sentence()) == (budget == 1200)
    assert ("although" in choice.sentence()) == (budget < 100)


def test_counted_bytes_by_hand():
    """A product keeps its input, a sigmoid its output; each memory once, weights not at all."""
    weight = torch.ones(6, 5, requires_grad=True)
    x = torch.ones(3, 5, requires_grad=True)

    def run():
        y = torch.sigmoid(x @ weight.T)
        return y * y.view_as(y)

    assert chunking.kept_bytes(run, [x, weight]) == 4 * 3 * 6
    assert chunking.kept_bytes(run, [weight]) == 4 * (3 * 6 + 3 * 5)
    assert chunking.kept_bytes(run) == 4 * (3 * 6 + 3 * 5 + 6 * 5)
    weight.requires_grad_(False)  # its product then needs the weight alone
    with torch.no_grad():
        assert chunking.kept_bytes(run, [weight]) == 4 * 3 * 6


def test_the_same_count_every_time_and_growing_with_the_rows():
    backbone, task = small_run.prepare(batch_size=16)
    backbone.adapters.train()
    there = [*backbone.parameters(), *backbone.buffers()]
    inputs = task.collate(next(task.batches(0, 0))).inputs

    def encode(stream, piece):
        return task.encode(backbone, stream, piece)

    def count(rows):
        return chunking.kept_bytes(lambda: encode("image", (inputs["image"][0][:rows],)), there)

    found = chunking.measure(encode, inputs, there)
    assert found == chunking.measure(encode, inputs, there)
    assert found.keys() == {"image", "text"}
    # Beside the rows only the adapters' joined up-projections are kept, which are small.
    assert count(16) == pytest.approx(16 * found["image"], rel=0.1)
    assert count(16) - count(8) == pytest.approx(count(8), rel=0.2)


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory in bytes."""
    return lambda count: monkeypatch.setattr(chunking, "free_memory", lambda device: count)


def losses(folder):
    return [e["loss"] for e in read_events(folder / "events.jsonl") if e["event"] == "step"]


def test_a_run_says_what_it_chose_and_is_the_run_with_that_chunk(tmp_path, free, capsys):
    free(2**40)
    result, whole = small_run.run(tmp_path / "whole", chunk="auto")
    plain, wanted = small_run.run(tmp_path / "plain")
    assert (result.chunk, plain.chunk) == (5, None)
    assert all(torch.equal(whole[n], wanted[n]) for n in wanted)
    free(0)
    result, rows = small_run.run(tmp_path / "auto", chunk="auto")
    given, wanted = small_run.run(tmp_path / "one", chunk=1)
    assert (result.chunk, given.chunk) == (1, 1)
    assert all(torch.equal(rows[n], wanted[n]) for n in wanted)
    [told] = [e for e in read_events(tmp_path / "auto" / "events.jsonl") if e["event"] == "chunk"]
    assert (told["chunk"], told["rows"], told["budget"]) == (1, 5, 0)
    assert told["per_row"]["image"] > told["per_row"]["text"] > 0


def test_a_resumed_run_keeps_its_chunk_whatever_is_free_now(tmp_path, free):
    free(0)
    _, wanted = small_run.run(tmp_path / "whole", chunk="auto")

    def stop():
        free(2**40)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        # One more than the steps: the first batch is collated to be measured, too.
        small_run.run(tmp_path / "cut", chunk="auto", task=lambda t: small_run.AtStep(t, 8, stop))
    result, found = small_run.run(tmp_path / "cut", chunk="auto", resume=True)
    assert result.chunk == 1
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_free_memory_is_real_and_within_a_container(tmp_path):
    assert 2**24 < chunking.free_memory(torch.device("cpu")) < 2**50
    assert chunking._container(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert chunking._container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert chunking._container(tmp_path) == 600
    assert chunking._meminfo(tmp_path / "none") is None


@pytest.mark.parametrize("chunk", [0, "some", True, 1.5])
def test_what_is_no_chunk(chunk):
    with pytest.raises(UserError, match="chunk cannot be"):
        make_recipe(chunk=chunk)
