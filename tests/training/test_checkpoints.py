import errno

import pytest
import torch
from torch.nn import Parameter

from crossadapt.errors import UserError
from crossadapt.training import checkpoints
from crossadapt.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from crossadapt.training.config import make_recipe
from crossadapt.training.optimisers import make_optimiser

IDENTITY = {"lr": 0.1, "data": "abc"}


def made(name="bert-adam", steps=2):
    """Trained tensors and an optimiser that has worked with them."""
    torch.manual_seed(0)
    trained = {"a.weight": Parameter(torch.randn(3, 2)), "a.bias": Parameter(torch.randn(3))}
    optimiser = make_optimiser(trained, make_recipe(optimiser=name))
    for _ in range(steps):
        for p in trained.values():
            p.grad = torch.ones_like(p)
        optimiser.step()
    return trained, optimiser


@pytest.mark.parametrize("name", ["bert-adam", "adamw", "sgd"])
def test_what_is_loaded_goes_on_as_what_was_saved(tmp_path, name):
    trained, optimiser = made(name)
    path = tmp_path / "last.safetensors"
    progress = Progress(step=2, zero_shot={"rsum": 1.5}, best={"rsum": 2.0}, stale=1, seconds=3.25)
    save_checkpoint(path, trained, progress, IDENTITY, optimiser)
    copies, fresh = made(name, steps=0)
    assert load_checkpoint(path, copies, IDENTITY, fresh) == progress
    for tensors, opt in ((trained, optimiser), (copies, fresh)):
        for p in tensors.values():
            p.grad = torch.full_like(p, 0.3)
        opt.step()
    assert all(torch.equal(trained[n], copies[n]) for n in trained)
    assert [f.name for f in tmp_path.iterdir()] == ["last.safetensors"]


def test_other_settings_and_other_tensors_are_refused(tmp_path):
    trained, _ = made()
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, trained, Progress(), IDENTITY)
    with pytest.raises(UserError, match="data: 'abc' then, 'xyz' now"):
        load_checkpoint(path, trained, {**IDENTITY, "data": "xyz"})
    for wrong in ({}, {**trained, "b": trained["a.bias"]},
                  {**trained, "a.bias": Parameter(torch.zeros(4))}):  # fmt: skip
        with pytest.raises(UserError, match="does not hold the tensors"):
            load_checkpoint(path, wrong, IDENTITY)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", None])
def test_a_damaged_file_is_named(tmp_path, content):
    trained, _ = made()
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, trained, Progress(), IDENTITY)
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(UserError, match="cannot read the checkpoint") as error:
        load_checkpoint(path, trained, IDENTITY)
    assert str(path) in error.value.where


def test_another_safetensors_file_is_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "x.safetensors", {}, IDENTITY)


def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path, monkeypatch):
    trained, _ = made()
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, trained, Progress(step=1), IDENTITY)
    old = path.read_bytes()

    def full(tensors, filename, metadata):
        filename.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_checkpoint(path, trained, Progress(step=2), IDENTITY)
    assert path.read_bytes() == old
    assert [f.name for f in tmp_path.iterdir()] == ["last.safetensors"]


def test_other_failures_are_not_called_a_full_disk(tmp_path, monkeypatch):
    def refused(tensors, filename, metadata):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoints, "save_file", refused)
    with pytest.raises(UserError, match="could not be saved: Input/output"):
        save_checkpoint(tmp_path / "x.safetensors", made()[0], Progress(), IDENTITY)
