"""One backbone, several adapters: mixed batches, memory, fingerprints."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from tests.adapting import hooks, train

import crossadapt
from crossadapt.adapters.mixture import mixed
from crossadapt.adapters.registry import make_config
from crossadapt.backbones.precision import choose_precision
from crossadapt.errors import UserError
from crossadapt.search import embedder as embedder_module
from crossadapt.search.embedder import Embedder

METHODS = ("cross-modal-adapter", "cross-modal-adapter", "full", "peft:lora")
NAMES = ("first", "second", "copy", "lora")
TEXTS = ["a red door", "two green birds on a boat", "a", "the small white house by the sea"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four trained adapters of `tiny:clip`: two insertions, one override, one shadow."""
    made = {}
    for seed, (name, method) in enumerate(zip(NAMES, METHODS, strict=True)):
        backbone = crossadapt.load("tiny:clip")
        options = {"r": 4, "d_s": 6} if method == "cross-modal-adapter" else {}
        adapter = crossadapt.attach(backbone, make_config(method, options), seed=seed)
        train(backbone, adapter, steps=3)
        made[name] = crossadapt.save_adapter(
            backbone, "default", tmp_path_factory.mktemp("adapters") / name
        )
    return made


@pytest.fixture
def embedder(folders):
    """All four on one backbone."""
    return Embedder.open("tiny:clip", folders, device="cpu", precision="fp32")


def noise(embedder, count, seed=0):
    shape = (count, 3, *embedder.backbone.preprocess.size)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def alone(folders, view):
    """An ordinary backbone with that one adapter, as the reference."""
    backbone = crossadapt.load("tiny:clip")
    if view != "frozen":
        crossadapt.load_adapter(backbone, folders[view])
    return backbone.eval()


def unit(features):
    return torch.nn.functional.normalize(features, dim=-1).numpy()


@torch.no_grad()
def test_rows_of_a_mixed_batch_equal_each_adapter_alone(embedder, folders):
    views = ["second", "frozen", "first", "copy", "lora", "second", "first", "frozen", "copy"]
    pixels = noise(embedder, len(views))
    texts = [TEXTS[i % len(TEXTS)] for i in range(len(views))]
    found = embedder.pictures(pixels, views)
    found_texts = embedder.texts(texts, views)
    assert found.dtype == np.float32
    assert found.shape == (len(views), embedder.dim)
    for row, view in enumerate(views):
        model = alone(folders, view)
        picture = model.encode_image(model.preprocess.normalise(torch.from_numpy(pixels[[row]])))
        tokens = model.tokenize([texts[row]])
        np.testing.assert_allclose(found[row], unit(picture)[0], atol=1e-5)
        text = model.encode_text(tokens.ids, tokens.mask)
        np.testing.assert_allclose(found_texts[row], unit(text)[0], atol=1e-5)
    # The adapters do differ, or the comparison above would say nothing.
    same = embedder.pictures(pixels[[0] * 5], ["frozen", *NAMES])
    apart = np.abs(same[:, None] - same[None]).max(axis=-1)[np.triu_indices(5, 1)]
    assert apart.min() > 1e-3


def test_insertions_share_one_forward_pass(embedder, monkeypatch):
    passes = []
    plain = embedder.backbone.encode_image
    monkeypatch.setattr(
        embedder.backbone, "encode_image", lambda x: passes.append(len(x)) or plain(x)
    )
    embedder.pictures(noise(embedder, 6), ["first", "second", "frozen"] * 2)
    assert passes == [6]
    passes.clear()
    embedder.pictures(noise(embedder, 6), ["first", "copy", "frozen", "lora", "copy", "second"])
    assert sorted(passes) == [1, 2, 3]


def test_texts_keep_their_order_and_one_name_serves_all_rows(embedder):
    one_by_one = np.concatenate([embedder.texts([text], "first") for text in TEXTS])
    np.testing.assert_allclose(embedder.texts(TEXTS, "first"), one_by_one, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(one_by_one, axis=1), 1, atol=1e-6)
    assert embedder.texts([]).shape == embedder.pictures(noise(embedder, 0)).shape
    assert embedder.pictures(noise(embedder, 0)).shape == (0, embedder.dim)


def test_long_inputs_are_cut_into_batches(embedder, monkeypatch):
    monkeypatch.setitem(embedder_module._SIZES, "vision", 3)
    pixels = noise(embedder, 8)
    views = ["lora", "first", "frozen", "lora", "lora", "lora", "second", "first"]
    whole = np.concatenate([embedder.pictures(pixels[[i]], view) for i, view in enumerate(views)])
    np.testing.assert_allclose(embedder.pictures(pixels, views), whole, atol=1e-5)


def test_memory_grows_by_the_adapters_parameters_only(folders):
    embedder = Embedder.open("tiny:clip", device="cpu", precision="fp32")

    def storages():
        found = {}
        modules = [embedder.backbone, *embedder.backbone.adapters.values()]
        modules += [a._shadow[1] for a in embedder._adapters.values() if a._shadow is not None]
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return found

    before = storages()
    for name, folder in folders.items():
        held = storages()
        view = embedder.add(name, folder)
        assert sum(storages().values()) - sum(held.values()) == 4 * view.trained
    assert embedder.names == NAMES
    assert before.items() <= storages().items()
    for name in NAMES:
        embedder.remove(name)
    assert embedder.names == ()
    assert sum(storages().values()) == sum(before.values())
    assert hooks(embedder.backbone) == 0


def test_nothing_is_left_active(embedder):
    embedder.pictures(noise(embedder, 4), NAMES)
    assert crossadapt.adapters.attach.active(embedder.backbone) is None
    assert hooks(embedder.backbone) == 0


def test_fingerprints_tell_everything_that_changes_a_vector(embedder, folders, tmp_path):
    views = ("frozen", *NAMES)
    assert len({embedder.fingerprint(view) for view in views}) == len(views)
    again = Embedder.open(None, {"other": folders["first"]}, device="cpu")
    assert again.fingerprint("other") == embedder.fingerprint("first")
    assert again.fingerprint("frozen") == embedder.fingerprint("frozen")
    assert again.view("other").adapter == str(folders["first"])
    assert again.view("other").trained == embedder.backbone.adapters["first"].count()

    backbone = crossadapt.load("tiny:clip")
    adapter = crossadapt.load_adapter(backbone, folders["first"])
    with torch.no_grad():
        next(iter(adapter.trained().values())).view(-1)[0] += 1e-3
    crossadapt.save_adapter(backbone, "default", tmp_path)
    again.add("nudged", tmp_path)
    assert again.fingerprint("nudged") != again.fingerprint("other")


def test_an_adapter_is_used_at_the_strength_it_was_saved_with(embedder, folders, tmp_path):
    backbone = crossadapt.load("tiny:clip")
    crossadapt.load_adapter(backbone, folders["first"])
    crossadapt.set_strength(backbone, 0.5)
    crossadapt.save_adapter(backbone, "default", tmp_path)
    both = Embedder.open("tiny:clip", {"whole": folders["first"], "milder": tmp_path}, device="cpu",
                         precision="fp32")  # fmt: skip
    assert both.fingerprint("milder") != both.fingerprint("whole") == embedder.fingerprint("first")
    tokens = backbone.tokenize(["a red door"])
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(backbone.encode_text(tokens.ids, tokens.mask), dim=1)
    found = both.texts(["a red door"] * 2, ["milder", "whole"])
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_threads_share_an_embedder(embedder):
    pixels = noise(embedder, 8)
    views = [("first", "copy", "lora", "frozen")[i % 4] for i in range(8)]
    wanted = [embedder.pictures(pixels[[i]], [views[i]]) for i in range(8)]
    found = [None] * 8

    def ask(i):
        for _ in range(5):
            found[i] = embedder.pictures(pixels[[i]], [views[i]])
            embedder.texts(TEXTS, views[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.stack(found), np.stack(wanted))


def test_prepare_is_the_backbones_own(embedder):
    from PIL import Image

    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    expected = embedder.backbone.preprocess.pixels(picture).numpy()
    np.testing.assert_array_equal(embedder.prepare(picture), expected)


def test_half_precision_stays_near(folders):
    half = Embedder.open("tiny:clip", {"first": folders["first"]}, device="cpu", precision="bf16")
    full = Embedder.open("tiny:clip", {"first": folders["first"]}, device="cpu", precision="fp32")
    pixels = noise(full, 4)
    views = ["first", "frozen", "first", "frozen"]
    cosine = (half.pictures(pixels, views) * full.pictures(pixels, views)).sum(axis=1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (lambda e, f: e.pictures(noise(e, 1), "frist"), "did you mean 'first'"),
        (lambda e, f: e.texts(["a"], ["first", "frozen"]), "2 views were given for 1 rows"),
        (lambda e, f: e.add("first", f["second"]), "already attached"),
        (lambda e, f: e.add("frozen", f["second"]), "model without adapter"),
        (lambda e, f: e.add("no/name", f["second"]), "cannot be an adapter name"),
        (lambda e, f: e.add("gone", f["second"] / "gone"), "does not exist"),
        (lambda e, f: e.remove("frist"), "did you mean 'first'"),
        (lambda e, f: Embedder.open("tiny:siglip", f, device="cpu"), "another backbone"),
        (lambda e, f: Embedder.open("tiny:clip", device="warp"), "unknown device"),
    ],
)
def test_wrong_use_is_explained_and_changes_nothing(embedder, folders, act, what):
    pixels = noise(embedder, 2)
    before = embedder.pictures(pixels, ["first", "frozen"])
    with pytest.raises(UserError, match=what):
        act(embedder, folders)
    np.testing.assert_array_equal(embedder.pictures(pixels, ["first", "frozen"]), before)


def test_a_mixture_is_refused_where_it_cannot_work(embedder):
    backbone = embedder.backbone
    adapters = [backbone.adapters[name] for name in NAMES]
    with pytest.raises(UserError, match="cannot share a batch"), mixed(backbone, adapters):
        pass
    crossadapt.activate(backbone, "second")
    with pytest.raises(UserError, match="is active"), mixed(backbone, [adapters[0]]):
        pass
    crossadapt.activate(backbone, None)
    pixels = torch.zeros(3, 3, *backbone.preprocess.size)
    with mixed(backbone, adapters[:1]), pytest.raises(ValueError, match="3"):
        backbone.encode_image(pixels)
    assert hooks(backbone) == 0


@pytest.mark.parametrize("method", ["cross-modal-adapter", "adaptformer"])
def test_an_adapter_that_has_all_rows_is_as_if_alone_and_as_if_mixed(method):
    backbone = crossadapt.load("tiny:clip")
    adapter = crossadapt.attach(backbone, make_config(method, {}), name="one")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.1)
    backbone.eval()
    pixels = torch.randn(3, 3, *backbone.preprocess.size)
    with torch.no_grad():
        expected = backbone.encode_image(pixels)
        crossadapt.activate(backbone, None)
        assert not torch.allclose(backbone.encode_image(pixels), expected, atol=1e-3)
        with mixed(backbone, [adapter] * 3):
            assert torch.equal(backbone.encode_image(pixels), expected)
        with mixed(backbone, [adapter, adapter, None]):
            found = backbone.encode_image(pixels)
    torch.testing.assert_close(found[:2], expected[:2], atol=1e-5, rtol=0)


def test_a_mixture_follows_each_adapters_strength(embedder):
    backbone = embedder.backbone
    adapters = [backbone.adapters["first"], None, backbone.adapters["second"]]
    pixels = torch.from_numpy(noise(embedder, 3)).float() / 255
    crossadapt.set_strength(backbone, 0.0, "first")
    crossadapt.set_strength(backbone, 0.5, "second")
    with torch.no_grad():
        with mixed(backbone, adapters):
            found = backbone.encode_image(pixels)
        frozen = backbone.encode_image(pixels)
        crossadapt.activate(backbone, "second")
        half = backbone.encode_image(pixels)
        crossadapt.activate(backbone, None)
    torch.testing.assert_close(found[:2], frozen[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[2], half[2], atol=1e-6, rtol=0)


def test_precision_is_the_hardwares_unless_given():
    assert Embedder.open("tiny:clip", device="cpu").precision == choose_precision("auto", "cpu")
