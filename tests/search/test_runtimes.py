"""Runtimes of an embedder: the gate, what is cached, what is chosen, what is said."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tests.adapting import small, train

import crossadapt
from crossadapt.adapters.dial import at_strength
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import exporting, runtime
from crossadapt.backbones.onnx_runtime import ONNX, ONNX_INT8, OnnxTowers
from crossadapt.backbones.openvino import OPENVINO
from crossadapt.backbones.precision import choose_precision
from crossadapt.cli.main import main
from crossadapt.errors import UserError
from crossadapt.search import runtime_trial
from crossadapt.search.embedder import Embedder
from crossadapt.search.embedding import embed_files
from crossadapt.search.runtime_cache import Entry
from crossadapt.search.runtime_gate import Sample, Vectors, Verdict, judge
from crossadapt.search.runtime_trial import Trial, processor
from crossadapt.search.runtimes import RUNTIMES, choose

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


def entry(embedder, view="frozen") -> Entry:
    """The export's."""
    return Trial(embedder, view, None).exported


def gate(embedder, runtime):
    """Under what its verdict is remembered."""
    return f"gate {runtime.name} {runtime.version()} {embedder.precision.name} {processor()}"


def counted(monkeypatch, owner, name) -> list[str]:
    """Passes calls of a function or method on, and gets an entry for each."""
    calls, real = [], getattr(owner, name)

    def call(*args, **kwargs):
        calls.append(name)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_vectors_equal_those_of_pytorch_with_and_without_adapter(embedder, name) -> None:
    pixels, views = pictures(embedder), ["frozen", "mine"]
    before = {v: (embedder.pictures(pixels, v), embedder.texts(TEXTS, v)) for v in views}
    assert np.abs(before["frozen"][0] - before["mine"][0]).max() > 1e-3
    for view in views:
        choice = choose(embedder, view, name)
        assert choice.runtime == name
        assert choice.verdicts[name].passed
        assert choice.verdicts[name].generated
    for view in views:
        np.testing.assert_allclose(embedder.pictures(pixels, view), before[view][0], atol=1e-4)
        np.testing.assert_allclose(embedder.texts(TEXTS, view), before[view][1], atol=1e-4)
    mixed = embedder.pictures(pixels[:2], ["mine", "frozen"])  # rows of several views at once
    np.testing.assert_allclose(mixed[0], before["mine"][0][0], atol=1e-4)
    np.testing.assert_allclose(mixed[1], before["frozen"][0][1], atol=1e-4)


def test_another_strength_goes_through_pytorch(embedder, monkeypatch) -> None:
    choose(embedder, "mine", "onnx")
    pixels = pictures(embedder, 2)
    used = counted(monkeypatch, OnnxTowers, "run")
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


def test_an_export_is_made_once_for_all_runtimes_and_a_damaged_one_again(
    embedder, monkeypatch
) -> None:
    choose(embedder, "frozen", "onnx")
    place = entry(embedder).folder
    made = counted(monkeypatch, exporting, "export")
    choose(embedder, "frozen", "openvino")
    compared = counted(monkeypatch, runtime_trial, "encode")
    choose(embedder, "frozen", "onnx")
    choose(embedder, "frozen", "openvino")
    assert (len(made), len(compared)) == (0, 0)
    weights = bytearray((place / "text.onnx").read_bytes())
    weights[len(weights) // 2] ^= 0xFF  # of the right size, but not what was written
    (place / "text.onnx").write_bytes(weights)
    assert choose(embedder, "frozen", "onnx").runtime == "onnx"
    assert (len(made), len(compared)) == (2, 2)  # two towers; both runtimes
    (place / "measured.json").write_text("{")
    choose(embedder, "frozen", "onnx")
    assert (len(made), len(compared)) == (2, 4)
    assert [f for f in place.parent.iterdir() if f.name.startswith(".")] == []


def test_a_verdict_from_noise_counts_until_there_are_pictures(embedder, monkeypatch) -> None:
    choose(embedder, "frozen", "onnx")
    sample = Sample(pictures(embedder, 4), tuple(TEXTS), (0, 1, 2, 3))
    first = choose(embedder, "frozen", "onnx", lambda: sample).verdicts["onnx"]
    assert (first.pictures, first.captioned, first.generated) == (4, True, False)
    compared = counted(monkeypatch, runtime_trial, "encode")
    assert choose(embedder, "frozen", "onnx").verdicts["onnx"] == first  # real ones for ever
    assert len(compared) == 0


def test_every_model_strength_and_maker_has_an_entry_of_its_own(folder, home) -> None:
    embedder = Embedder.open("tiny:clip", {"mine": folder}, device="cpu", precision="fp32")
    backbone = crossadapt.load("tiny:clip")
    crossadapt.load_adapter(backbone, folder)
    crossadapt.set_strength(backbone, 0.5)
    weak = crossadapt.save_adapter(backbone, "default", home / "weak")
    embedder.add("weak", weak)
    prints = [embedder.fingerprint(view) for view in ("frozen", "mine", "weak")]
    assert len({Entry(f, maker).folder for f in prints for maker in ("a 1", "a 2", "b 1")}) == 9


def wide() -> Embedder:
    """A model with a wide and shallow text tower: rounding to int8 costs it little."""
    backbone = small("clip", text_width=128, text_layers=1, projection_dim=48)
    return Embedder(backbone, choose_precision("fp32", "cpu"))


def test_int8_is_accepted_or_refused_by_its_numbers(embedder) -> None:
    """For real: the same files, once where they are near enough to PyTorch, once where not."""
    with pytest.raises(UserError, match="int8 is refused: least cosine 0") as caught:
        choose(embedder, "frozen", "onnx-int8")
    assert "or the runtime onnx" in str(caught.value)
    refused = Verdict.from_dict(entry(embedder).measured(gate(embedder, ONNX_INT8)))
    assert 0.9 < refused.cosine_texts < 0.999
    assert refused.drop > 0.2

    other = wide()
    sample = Sample(pictures(other, 3), tuple(TEXTS[:3]), (0, 1, 2))
    plain = other.pictures(sample.pixels)
    choice = choose(other, "frozen", "onnx-int8", lambda: sample)
    assert choice.runtime == "onnx-int8"
    verdict = choice.verdicts["onnx-int8"]
    assert 0.999 <= min(verdict.cosine_pictures, verdict.cosine_texts) < 0.999999
    assert verdict.drop <= 0.2
    assert f"as asked; {verdict}" in choice.reason
    cosines = (plain * other.pictures(sample.pixels)).sum(1)
    assert 0.999 <= cosines.min() < 0.999999  # and it is int8 that runs


class Broken(OnnxTowers):
    """A runtime whose features of texts are wrong."""

    def run(self, tower, inputs):
        features = super().run(tower, inputs)
        return features[:, ::-1].copy() if tower == "text" else features


def only(monkeypatch, *runtimes) -> None:
    """As if nothing else were installed."""
    for name in [name for name in RUNTIMES if name not in {r.name for r in runtimes}]:
        monkeypatch.setattr(type(RUNTIMES[name]), "installed", lambda self: self in runtimes)


def fast(embedder, **factors) -> None:
    """Remember speeds: `factors` times that of PyTorch."""
    chosen = [r for r in RUNTIMES.values() if r.name.replace("-", "_") in factors]
    named = " ".join(f"{r.name} {r.version()}" for r in chosen)
    what = f"speed fp32 {torch.get_num_threads()} {processor()} {named}"
    speeds = {r.name: 10.0 * factors[r.name.replace("-", "_")] for r in chosen}
    entry(embedder).remember(what, {"torch": 10.0} | speeds)


def test_a_broken_runtime_is_refused_with_the_numbers(embedder, monkeypatch) -> None:
    shutil.rmtree(entry(embedder).folder)
    monkeypatch.setattr("crossadapt.backbones.onnx_runtime.OnnxTowers", Broken)
    only(monkeypatch, ONNX)
    pixels = pictures(embedder)
    before = embedder.pictures(pixels)
    number = r"cosine 1\.00000 for pictures and -?0\.\d+ for texts \(wanted 0\.999\), recall \+\d"
    with pytest.raises(UserError, match=number) as caught:
        choose(embedder, "frozen", "onnx")
    assert "use the runtime torch" in str(caught.value)
    fast(embedder, onnx=3)
    choice = choose(embedder, "frozen", "auto")
    assert choice.runtime == "torch"
    assert "ONNX Runtime is refused" in choice.reason
    assert choice.verdicts["onnx"].drop > 0.2
    np.testing.assert_array_equal(embedder.pictures(pixels), before)  # and nothing is left of it
    stored = entry(embedder).measured(gate(embedder, ONNX))
    assert Verdict.from_dict(stored) == choice.verdicts["onnx"]
    shutil.rmtree(entry(embedder).folder)  # its verdict is about the broken one


def test_a_trace_that_holds_for_short_texts_only_is_refused(home) -> None:
    """Prompts on open_clip: whether a text has to be cut for them is decided in Python."""
    backbone = crossadapt.load("tiny:open_clip")
    crossadapt.attach(backbone, make_config("maple", {}))
    saved = crossadapt.save_adapter(backbone, "default", home / "maple")
    embedder = Embedder.open("tiny:open_clip", {"long": saved}, device="cpu", precision="fp32")
    with pytest.raises(UserError, match=r"text tower fails at inputs of shape|is refused: least"):
        choose(embedder, "long", "onnx")


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


def test_auto_takes_the_fastest_that_passes(embedder, monkeypatch) -> None:
    timed = counted(monkeypatch, Trial, "speeds")
    fast(embedder, openvino=3, onnx=2, onnx_int8=4)
    choice = choose(embedder, "frozen", "auto")
    assert choice.runtime == "openvino"
    assert "torch 10.0, openvino 30.0, onnx 20.0, onnx-int8 40.0 images/s" in choice.reason
    assert "ONNX Runtime in int8 is refused: least cosine 0.99" in choice.reason
    assert "openvino is 3.00 x as fast as torch and passes: least cosine" in choice.reason
    assert choice.verdicts.keys() == {"onnx-int8", "openvino"}  # the gate was not asked about onnx
    fast(embedder, openvino=1.05, onnx=1.2, onnx_int8=1.05)
    assert choose(embedder, "frozen", "auto").runtime == "onnx"
    used = counted(monkeypatch, OnnxTowers, "run")
    embedder.pictures(pictures(embedder, 1))
    assert len(used) == 1
    fast(embedder, openvino=1.05, onnx=0.9, onnx_int8=1.05)
    choice = choose(embedder, "frozen", "auto")
    assert (choice.runtime, len(timed)) == ("torch", 3)
    assert "no other is at least 1.1 x as fast as torch" in choice.reason
    used.clear()
    embedder.pictures(pictures(embedder, 1))
    assert used == []


def test_speeds_are_measured_once_per_machine_and_set_of_runtimes(embedder, monkeypatch) -> None:
    shutil.rmtree(entry(embedder).folder)
    only(monkeypatch, ONNX)
    turns = counted(monkeypatch, Trial, "seconds")
    first = choose(embedder, "frozen", "auto").speeds
    assert len(turns) == 1 + 8  # one picture as a trial; a turn to warm up and three, of both
    assert choose(embedder, "frozen", "auto").speeds == first
    assert len(turns) == 9 + 1
    monkeypatch.setattr(runtime_trial, "processor", lambda: "another")
    choose(embedder, "frozen", "auto")
    assert len(turns) == 10 + 9


def test_one_that_cannot_run_the_model_is_left_out(embedder, monkeypatch) -> None:
    def fail(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(type(OPENVINO), "load", fail)
    fast(embedder, onnx=2, onnx_int8=1)
    choice = choose(embedder, "frozen", "auto")
    assert choice.runtime == "onnx"
    assert "OpenVINO cannot run the exported model: no such operator" in choice.reason


def test_without_any_other_runtime(embedder, monkeypatch) -> None:
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda _: None)
    for name, extra in (("openvino", "openvino"), ("onnx", "onnx"), ("onnx-int8", "onnx")):
        with pytest.raises(UserError, match=f"runtime {name} is not installed") as caught:
            choose(embedder, "frozen", name)
        assert f"crossadapt[{extra}]" in str(caught.value)
    choice = choose(embedder, "frozen", "auto")
    assert choice.runtime == "torch"
    assert choice.reason == "none of openvino, onnx, onnx-int8 is installed"
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
    vectors, readable = embed_files(embedder, files, workers=0, runtime="onnx")
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
    only(monkeypatch, ONNX)
    assert index(photos, home, "fast", "--runtime", "auto", "--json") == 0
    report = json.loads(capsys.readouterr().out)["runtimes"]["frozen"]
    assert set(report["images_per_second"]) == {"torch", "onnx"}
    assert report["runtime"] == "torch" or report["gate"][report["runtime"]]["pictures"] == 5
    assert index(photos, home, "sure", "--runtime", "onnx") == 0
    said = capsys.readouterr().out
    assert "view frozen: runtime onnx, as asked; least cosine" in said
    assert "on 5 pictures and 5 texts" in said
    only(monkeypatch, OPENVINO)
    assert index(photos, home, "none", "--runtime", "onnx") == 1
    assert "crossadapt[onnx]" in capsys.readouterr().err
