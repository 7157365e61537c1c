"""The prefix cache: same features and gradients, and what happens when the disk does not play."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from tests import small_run

from crossadapt import backbones
from crossadapt.adapters.attach import attach, attached
from crossadapt.adapters.reach import frozen_layers
from crossadapt.adapters.registry import make_config
from crossadapt.backbones.precision import choose_precision
from crossadapt.tasks import prefix_cache, prefix_store
from crossadapt.tasks.prefix_store import PrefixStore, clean
from crossadapt.tasks.retrieval import RetrievalConfig, RetrievalTask
from crossadapt.training.events import read_events
from crossadapt.training.gradient_cache import backward
from crossadapt.training.loop import fit

FP32 = choose_precision("fp32")
LAST = ("cross-modal-adapter", {"r": 4, "d_s": 4, "layers": 1})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features" / "prefix"


def prepare(method=LAST, family="clip", **config):
    backbone = backbones.tiny(family)
    attach(backbone, make_config(*method))
    task = RetrievalTask(backbone, small_run.manifest(), small_run.pixels(), batch_size=5,
                         config=RetrievalConfig(**config))  # fmt: skip
    return backbone, task


def cache(backbone, task, epochs=3, precision=FP32):
    return task.cache_prefix(backbone, attached(backbone, "default"), precision, epochs)


def gradients(backbone, task, chunk=None, precision=FP32):
    trained = attached(backbone, "default").trained()
    for parameter in trained.values():
        parameter.grad = None
    batch = task.collate(np.array([3, 7, 11, 12, 19]))

    def encode(stream, inputs):
        with precision.autocast():
            return task.encode(backbone, stream, inputs)

    value, _ = backward(encode, lambda f: task.loss(f, batch, backbone), batch.inputs, chunk)
    return value, {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize(
    "method", [LAST, ("partial", {"layers": 1}), ("projection", {})], ids=lambda m: m[0]
)
@pytest.mark.parametrize("chunk", [None, 2])
def test_loss_and_gradients_are_those_of_the_plain_path(method, family, chunk):
    backbone, task = prepare(method, family)
    plain, wanted = gradients(backbone, task, chunk)
    notes = cache(backbone, task)
    assert [note.reason for note in notes] == ["", ""]
    assert task.collate(np.arange(2)).inputs["image"][0].ndim == 3
    value, found = gradients(backbone, task, chunk)
    assert value == pytest.approx(plain, rel=1e-6)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        # Only the number of rows in a product differs, which may change the order of its sums.
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_in_bf16_too():
    bf16 = choose_precision("bf16")
    backbone, task = prepare()
    plain, wanted = gradients(backbone, task, precision=bf16)
    assert [note.reason for note in cache(backbone, task, precision=bf16)] == ["", ""]
    value, found = gradients(backbone, task, precision=bf16)
    assert value == pytest.approx(plain, rel=1e-2)
    for name, gradient in wanted.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 0.05, name


def test_the_model_is_as_before():
    backbone, task = prepare()
    pixels = torch.zeros(1, 3, *backbone.image_size)
    wanted = backbone.encode_image(pixels)
    cache(backbone, task)
    gradients(backbone, task)
    assert torch.equal(backbone.encode_image(pixels), wanted)
    assert not any("forward" in m.__dict__ for m in backbone.model.modules())


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        (("cross-modal-adapter", {"r": 4, "d_s": 4}), {}),
        (LAST, {"vision": 1, "text": 2}),
        (("partial", {"layers": 1, "heads": True}), {"vision": 1, "text": 2}),
        (("projection", {}), {"vision": 2, "text": 3}),
        (("full", {}), {}),
        (("vpt", {}), {}),
    ],
)
def test_how_far_a_method_reaches(method, wanted):
    backbone = backbones.tiny("clip")
    adapter = attach(backbone, make_config(*method))
    assert frozen_layers(backbone, adapter) == wanted


@pytest.mark.parametrize("config", [{"augment": "pose"}, {"token_drop": 0.5}])
def test_varied_pictures_are_not_cached_but_texts_are(config):
    backbone, task = prepare(**config)
    assert [note.stream for note in cache(backbone, task)] == ["text"]
    assert task.collate(np.arange(2)).inputs["image"][0].dtype == torch.uint8


def test_made_once_and_only_when_worth_it(own_cache, monkeypatch):
    backbone, task = prepare()
    assert all("1.0 times" in note.reason for note in cache(backbone, task, epochs=1))
    cache(backbone, task, epochs=2)
    again = prepare()
    monkeypatch.setattr(PrefixStore, "fill", None)
    assert [note.reason for note in cache(*again, epochs=1)] == ["", ""]
    assert len(list(own_cache.iterdir())) == 2


def test_other_pictures_are_other_caches(own_cache):
    backbone, task = prepare()
    cache(backbone, task)
    task.pixels = small_run.pixels()[::-1].copy()
    cache(backbone, task)
    assert len(list(own_cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["changed", "cut", "no-facts", "gone"])
def test_a_damaged_shard_is_made_again(own_cache, monkeypatch, damage):
    monkeypatch.setattr(prefix_store, "SHARD_BYTES", 2**12)
    backbone, task = prepare()
    _, wanted = gradients(backbone, task)
    cache(backbone, task)
    shards = sorted(own_cache.glob("*/*.bin"))
    assert len(shards) > 2
    content = shards[0].read_bytes()
    whole = {p: p.stat().st_mtime_ns for p in shards[1:]}
    if damage == "changed":
        shards[0].write_bytes(content[:-4] + bytes([1, 2, 3, 4]))
    elif damage == "cut":
        shards[0].write_bytes(content[:100])
    else:
        (shards[0].with_suffix(".json") if damage == "no-facts" else shards[0]).unlink()
    assert [note.reason for note in cache(backbone, task)] == ["", ""]
    assert shards[0].read_bytes() == content
    assert {p: p.stat().st_mtime_ns for p in shards[1:]} == whole
    for name, gradient in gradients(backbone, task)[1].items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)


def test_a_full_disk_leads_to_the_plain_path_and_says_so(own_cache, monkeypatch):
    backbone, task = prepare()
    _, wanted = gradients(backbone, task)

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("crossadapt.files.os.replace", full)
    notes = cache(backbone, task)
    assert all("the disk is full" in note.reason for note in notes)
    assert "not cached: could not be saved: the disk is full" in notes[0].sentence()
    assert not list(own_cache.glob("*/*"))
    assert all(torch.equal(g, wanted[n]) for n, g in gradients(backbone, task)[1].items())


def test_a_cache_beyond_its_share_of_the_disk_is_not_made(own_cache, monkeypatch):
    monkeypatch.setattr(prefix_cache, "room", lambda _folder: 1000)
    assert all("half of the free disk" in note.reason for note in cache(*prepare()))
    assert not list(own_cache.glob("*/*"))


def test_features_that_do_not_agree_are_not_used(monkeypatch):
    backbone, task = prepare()
    cache(backbone, task)
    read = PrefixStore.read
    monkeypatch.setattr(PrefixStore, "read", lambda *a: read(*a).roll(1, 0))
    assert all("differ by" in note.reason for note in cache(backbone, task))
    assert task.collate(np.arange(2)).inputs["image"][0].dtype == torch.uint8


def test_old_caches_are_removed(own_cache, monkeypatch):
    cache(*prepare())
    clean(own_cache)
    assert len(list(own_cache.iterdir())) == 2
    monkeypatch.setattr(prefix_store, "KEEP_DAYS", -1)
    clean(own_cache)
    assert not list(own_cache.iterdir())


def run(output, *, resume=False, task=None, prefix=True):
    backbone, own = prepare()
    fit(backbone, own if task is None else task(own), small_run.recipe(), output=output,
        precision=FP32, resume=resume, quiet=True, prefix_cache=prefix)  # fmt: skip
    return attached(backbone, "default").trained()


def test_a_run_and_its_resumption(tmp_path):
    whole = run(tmp_path / "whole")
    events = [e for e in read_events(tmp_path / "whole" / "events.jsonl") if e["event"] == "prefix"]
    assert [(e["stream"], e["below_layer"]) for e in events] == [("image", 1), ("text", 2)]
    assert all(e["bytes"] > 0 and not e["reason"] for e in events)
    plain = run(tmp_path / "plain", prefix=False)
    for name, value in whole.items():
        # Twelve steps of Adam, whose first ones are as large for a tiny gradient as for any.
        torch.testing.assert_close(value, plain[name], rtol=1e-2, atol=2e-3)

    def stop():
        raise RuntimeError("stop")

    class Stopped(small_run.AtStep):
        def cache_prefix(self, *arguments):
            return self.task.cache_prefix(*arguments)

    with pytest.raises(RuntimeError, match="stop"):
        run(tmp_path / "cut", task=lambda t: Stopped(t, 7, stop))
    resumed = run(tmp_path / "cut", resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
