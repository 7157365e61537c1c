"""Runtimes of an embedder: the gate, what is cached, what is chosen, what is said."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tests.adapting import train

import crossadapt
from crossadapt.adapters.dial import at_strength
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import openvino
from crossadapt.cli.main import main
from crossadapt.errors import UserError
from crossadapt.search import runtimes
from crossadapt.search.embedder import Embedder
from crossadapt.search.embedding import embed_files
from crossadapt.search.runtime_cache import Entry
from crossadapt.search.runtime_gate import Sample, Vectors, Verdict, judge
from crossadapt.search.runtimes import choose

TEXTS = ["a red door", "two green birds on a boat", "a", "word " * 80]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runtimes")


@pytest.fixture(autouse=True)
def _own_cache(home, monkeypatch) -> None:
    """One cache for the module: exports are shared by its tests, but by nobody else's."""
    monkeypatch.setenv("CROSSADAPT_CACHE", str(home / "cache"))


@pytest.fixture(scope="module")
def folder(home):
    """A trained adapter of `tiny:clip`."""
    backbone = crossadapt.load("tiny:clip")
    config = make_config("cross-modal-adapter", {"r": 4, "d_s": 6})
    train(backbone, crossadapt.attach(backbone, config), steps=3)
    return crossadapt.save_adapter(backbone, "default", home / "mine")


@pytest.fixture
def embedder(folder):
    return Embedder.open("tiny:clip", {"mine": folder}, device="cpu", precision="fp32")


def pictures(embedder, count=9, seed=0):
    shape = (count, 3, *embedder.backbone.preprocess.size)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def entry(embedder, view="frozen"):
    name = f"openvino {openvino.version()}"
    return Entry(embedder.fingerprint(view), embedder.precision.name, name)


def counted(monkeypatch, owner, name) -> list[str]:
    """Passes calls of a function or method on, and gets an entry for each."""
    calls, real = [], getattr(owner, name)

    def call(*args, **kwargs):
        calls.append(name)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_vectors_equal_those_of_pytorch_with_and_without_adapter(embedder) -> None:
    pixels, views = pictures(embedder), ["frozen", "mine"]
    before = {v: (embedder.pictures(pixels, v), embedder.texts(TEXTS, v)) for v in views}
    assert np.abs(before["frozen"][0] - before["mine"][0]).max() > 1e-3
    for view in views:
        choice = choose(embedder, view, "openvino")
        assert choice.runtime == "openvino"
        assert choice.verdict is not None
        assert choice.verdict.passed
        assert choice.verdict.generated
    for view in views:
        np.testing.assert_allclose(embedder.pictures(pixels, view), before[view][0], atol=1e-4)
        np.testing.assert_allclose(embedder.texts(TEXTS, view), before[view][1], atol=1e-4)
    mixed = embedder.pictures(pixels[:2], ["mine", "frozen"])  # rows of several views at once
    np.testing.assert_allclose(mixed[0], before["mine"][0][0], atol=1e-4)
    np.testing.assert_allclose(mixed[1], before["frozen"][0][1], atol=1e-4)


def test_another_strength_goes_through_pytorch(embedder, monkeypatch) -> None:
    choose(embedder, "mine", "openvino")
    pixels = pictures(embedder, 2)
    used = counted(monkeypatch, openvino.CompiledTowers, "__call__")
    with at_strength(0.0):
        frozen = embedder.pictures(pixels, "mine")
    assert used == []
    np.testing.assert_allclose(frozen, embedder.pictures(pixels, "frozen"), atol=1e-6)


def test_the_cache_goes_by_the_strength_of_the_moment(embedder) -> None:
    backbone, before = embedder.backbone, embedder.fingerprint_now("mine")
    assert before == embedder.fingerprint("mine")
    with at_strength(0.5):
        dialled = embedder.fingerprint_now("mine")
    crossadapt.set_strength(backbone, 0.5, "mine")
    assert before != dialled == embedder.fingerprint_now("mine")
    assert embedder.fingerprint("mine") == before


def test_an_export_is_made_once_and_a_damaged_one_again(embedder, monkeypatch) -> None:
    choose(embedder, "frozen", "openvino")
    place = entry(embedder).folder
    made = counted(monkeypatch, openvino, "export")
    compared = counted(monkeypatch, runtimes, "encode")
    choose(embedder, "frozen", "openvino")
    assert (len(made), len(compared)) == (0, 0)
    weights = bytearray((place / "text.bin").read_bytes())
    weights[len(weights) // 2] ^= 0xFF  # of the right size, but not what was written
    (place / "text.bin").write_bytes(weights)
    assert choose(embedder, "frozen", "openvino").runtime == "openvino"
    assert (len(made), len(compared)) == (2, 2)  # two towers; both runtimes
    (place / "measured.json").write_text("{")
    choose(embedder, "frozen", "openvino")
    assert (len(made), len(compared)) == (2, 4)
    assert [f for f in place.parent.iterdir() if f.name.startswith(".")] == []


def test_a_verdict_from_noise_counts_until_there_are_pictures(embedder, monkeypatch) -> None:
    choose(embedder, "frozen", "openvino")
    sample = Sample(pictures(embedder, 4), tuple(TEXTS), (0, 1, 2, 3))
    first = choose(embedder, "frozen", "openvino", lambda: sample).verdict
    assert first is not None
    assert (first.pictures, first.captioned, first.generated) == (4, True, False)
    compared = counted(monkeypatch, runtimes, "encode")
    assert choose(embedder, "frozen", "openvino").verdict == first  # real ones count for ever
    assert len(compared) == 0


def test_every_model_strength_and_precision_has_an_entry_of_its_own(folder, home) -> None:
    embedder = Embedder.open("tiny:clip", {"mine": folder}, device="cpu", precision="fp32")
    backbone = crossadapt.load("tiny:clip")
    crossadapt.load_adapter(backbone, folder)
    crossadapt.set_strength(backbone, 0.5)
    weak = crossadapt.save_adapter(backbone, "default", home / "weak")
    embedder.add("weak", weak)
    coarse = Embedder.open("tiny:clip", device="cpu", precision="bf16")
    places = {entry(embedder, view).folder for view in ("frozen", "mine", "weak")}
    assert len(places | {entry(coarse).folder}) == 4
    assert Entry("f", "fp32", "openvino 1").folder != Entry("f", "fp32", "openvino 2").folder


class Broken(openvino.CompiledTowers):
    """A runtime whose features of texts are wrong."""

    def __call__(self, tower, inputs):
        features = super().__call__(tower, inputs)
        return features[:, ::-1].copy() if tower == "text" else features


def test_a_broken_runtime_is_refused_with_the_numbers(embedder, monkeypatch) -> None:
    shutil.rmtree(entry(embedder).folder, ignore_errors=True)
    monkeypatch.setattr(runtimes, "CompiledTowers", Broken)
    pixels = pictures(embedder)
    before = embedder.pictures(pixels)
    number = r"cosine 1\.00000 for pictures and -?0\.\d+ for texts \(wanted 0\.999\), recall \+\d"
    with pytest.raises(UserError, match=number) as caught:
        choose(embedder, "frozen", "openvino")
    assert "use the runtime torch" in str(caught.value)
    choice = choose(embedder, "frozen", "auto")
    assert choice.runtime == "torch"
    assert "OpenVINO is refused" in choice.reason
    assert choice.verdict is not None
    assert choice.verdict.drop > 0.2
    np.testing.assert_array_equal(embedder.pictures(pixels), before)  # and nothing is left of it
    stored = json.loads((entry(embedder).folder / "measured.json").read_text())
    assert Verdict.from_dict(stored["gate"]) == choice.verdict
    shutil.rmtree(entry(embedder).folder)  # its verdict is about the broken one


def test_a_trace_that_holds_for_short_texts_only_is_refused(home) -> None:
    """Prompts on open_clip: whether a text has to be cut for them is decided in Python."""
    backbone = crossadapt.load("tiny:open_clip")
    crossadapt.attach(backbone, make_config("maple", {}))
    saved = crossadapt.save_adapter(backbone, "default", home / "maple")
    embedder = Embedder.open("tiny:open_clip", {"long": saved}, device="cpu", precision="fp32")
    verdict = choose(embedder, "long", "auto").verdict
    assert verdict is not None
    assert not verdict.passed
    assert verdict.drop == 0  # the sample's own texts are short: only the longest one is wrong
    assert verdict.cosine_texts < 0.999 < verdict.cosine_pictures


def unit(*rows):
    values = np.asarray(rows, np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_the_gate_counts_recall_and_takes_the_least_cosine() -> None:
    """12 pictures around a circle, a text at each; one text moved to the far side."""
    angles = np.arange(12) * np.pi / 6
    circle = unit(*np.stack([np.cos(angles), np.sin(angles)], 1))
    right = Vectors(circle, circle, circle[:1], circle[:1])
    moved = circle.copy()
    moved[3] = -moved[3]
    wrong = Vectors(circle, moved, circle[:1], circle[:1])
    sample = Sample(np.zeros((12, 3, 1, 1), np.uint8), ("x",) * 12, tuple(range(12)))
    same, other = judge(right, right, sample, right), judge(right, wrong, sample, right)
    assert (same.recall, same.drop, same.passed) == (100, 0, True)
    assert (other.cosine_pictures, other.passed) == (pytest.approx(1), False)
    assert other.cosine_texts == pytest.approx(-1)
    # Text 3 finds its picture last; picture 3 its text last, and picture 9 shares its first place
    # (rank 1.5) with the stranger: 3 + 3 + 1 misses of 72.
    assert other.drop == pytest.approx(100 * 7 / 72)
    # Without captions only texts ask, and PyTorch in float32 says what is right: 3 misses of 36.
    blind = Sample(sample.pixels, sample.texts)
    assert judge(right, wrong, blind, right).drop == pytest.approx(100 * 3 / 36)
    lost = circle.copy()
    lost[0] = np.nan
    nothing = judge(right, Vectors(lost, circle, lost[:1], lost[:1]), sample, right)
    assert (nothing.cosine_pictures, nothing.recall, nothing.passed) == (-1, 0, False)


@pytest.mark.parametrize(("factor", "chosen"), [(3.0, "openvino"), (1.05, "torch")])
def test_auto_takes_what_was_measured_to_be_faster(embedder, monkeypatch, factor, chosen) -> None:
    where = entry(embedder)
    choose(embedder, "frozen", "openvino")
    place = {"processor": openvino.processor(), "threads": torch.get_num_threads()}
    where.remember(speed={"torch": 10.0, "openvino": 10.0 * factor} | place)
    timed = counted(monkeypatch, runtimes, "_seconds")
    choice = choose(embedder, "frozen", "auto")
    assert choice.runtime == chosen
    assert f"({factor:.2f} x)" in choice.reason
    assert len(timed) == 0
    used = counted(monkeypatch, openvino.CompiledTowers, "__call__")
    embedder.pictures(pictures(embedder, 1))
    assert len(used) == (chosen == "openvino")
    where.remember(speed={"torch": 1.0, "openvino": 1.0, "processor": "another", "threads": 1})
    choose(embedder, "frozen", "auto")
    assert len(timed) == 8  # measured here: a turn to warm up and three, of both


def test_without_openvino(embedder, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="not installed") as caught:
        choose(embedder, "frozen", "openvino")
    assert "crossadapt[openvino]" in str(caught.value)
    choice = choose(embedder, "frozen", "auto")
    assert (choice.runtime, choice.reason) == ("torch", "the runtime openvino is not installed")
    with pytest.raises(UserError, match="unknown runtime 'openvin'") as caught:
        choose(embedder, "frozen", "openvin")
    assert "did you mean 'openvino'?" in str(caught.value)


@pytest.fixture(scope="module")
def photos(home):
    place = home / "photos"
    place.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        noise = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(place / f"{index}.png")
        (place / f"{index}.txt").write_text(f"{TEXTS[index % 3]} {index}")
    (place / "3.png").write_bytes(b"no picture")
    return place


def test_files_are_embedded_by_the_runtime_asked_for(embedder, photos) -> None:
    files = sorted(photos.glob("*.png"))
    plain, _ = embed_files(embedder, files, workers=0)
    vectors, readable = embed_files(embedder, files, workers=0, runtime="openvino")
    assert readable.tolist() == [True, True, True, False, True, True]
    np.testing.assert_allclose(vectors, plain, atol=1e-4)
    assert not np.array_equal(vectors, plain)  # it was another runtime


def index(photos, home, name, *more):
    words = ["index", str(photos), "--collection", name, "--backbone", "tiny:clip", "--quiet"]
    words += ["--store", str(home / "store"), "--workers", "0", "--precision", "fp32"]
    return main([*words, "--device", "cpu", *more])


def test_the_command_says_what_it_chose_and_why(photos, home, capsys, monkeypatch) -> None:
    shutil.rmtree(home / "cache" / "runtimes", ignore_errors=True)
    assert index(photos, home, "plain") == 0
    assert "view frozen: runtime" not in capsys.readouterr().out
    assert index(photos, home, "fast", "--runtime", "auto", "--json") == 0
    report = json.loads(capsys.readouterr().out)["runtimes"]["frozen"]
    assert set(report["images_per_second"]) == {"torch", "openvino"}
    assert report["gate"]["pictures"] == 5
    assert report["gate"]["captioned"]
    assert index(photos, home, "sure", "--runtime", "openvino") == 0
    said = capsys.readouterr().out
    assert "view frozen: runtime openvino, as asked; least cosine" in said
    assert "on 5 pictures and 5 texts" in said
    assert index(photos, home, "sure", "--runtime", "openvino") == 0
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda _: None)
    assert index(photos, home, "none", "--runtime", "openvino") == 1
    assert "crossadapt[openvino]" in capsys.readouterr().err
