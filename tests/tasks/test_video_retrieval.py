"""Video retrieval: clips of one frame are pictures, the head that trains measures, the probe."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests import small_run

from crossadapt import backbones
from crossadapt.adapters.attach import attach
from crossadapt.adapters.registry import make_config
from crossadapt.backbones.precision import choose_precision
from crossadapt.data import read_manifest
from crossadapt.data.clips import make_clips
from crossadapt.data.clips.generate import Size
from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError
from crossadapt.evaluation.order_probe import (
    ProbeResult,
    complete_pairs,
    order_probe,
    probe_rows,
)
from crossadapt.evaluation.protocols import evaluate, evaluate_scores
from crossadapt.tasks.base import TaskSetup
from crossadapt.tasks.clips import Stills, are_clips, encode_clips
from crossadapt.tasks.encode import encode_images
from crossadapt.tasks.retrieval import RetrievalTask
from crossadapt.tasks.retrieval import make_task as make_picture_task
from crossadapt.tasks.video_retrieval import (
    HeldOutClips,
    VideoRetrievalConfig,
    VideoRetrievalTask,
    backwards,
)
from crossadapt.training import gradient_cache
from crossadapt.training.compare import _comparison, _job
from crossadapt.training.contender import measure
from crossadapt.training.heldout import resolve_task
from crossadapt.training.job import TrainJob
from crossadapt.training.measure import run_evaluation
from crossadapt.training.method_strings import parse_contender
from crossadapt.training.reporting import report_run
from crossadapt.training.run import run_training

HEADS = ["mean", "text-conditioned"]
FP32 = choose_precision("fp32")


class Noise:
    """Clips of noise, the last frames of some of them missing."""

    def __init__(self, count: int = 20, frames: int = 3) -> None:
        self.frames = frames
        random = np.random.default_rng(0)
        self.pixels = random.integers(0, 256, (count, frames, 3, 32, 32), dtype=np.uint8)
        self.mask = np.arange(frames) < 1 + np.arange(count)[:, None] % frames
        self.pixels[~self.mask] = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int):
        return self.pixels[index], self.mask[index]


def make(clips=None, backbone=None, **options):
    """A tiny backbone with a moved mv-adapter, and a task over twenty clips."""
    if backbone is None:
        backbone = backbones.tiny("clip")
        adapter = attach(backbone, make_config("mv-adapter", {"d": 8, "frames": 4, "tied": 1}))
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in adapter.trained().values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    clips = Noise() if clips is None else clips
    rows = small_run.manifest()
    return backbone, VideoRetrievalTask(
        backbone, rows, clips, validation=rows, validation_clips=clips, batch_size=5,
        precision=FP32, config=VideoRetrievalConfig(**options),
    )  # fmt: skip


def loss_of(backbone, task, rows):
    batch = task.collate(rows)
    features = {name: task.encode(backbone, name, inputs) for name, inputs in batch.inputs.items()}
    return task.loss(features, batch, backbone)[0]


def test_collate_gives_frames_masks_and_keys() -> None:
    _, task = make()
    batch = task.collate(np.array([0, 2, 4]))
    pixels, mask = batch.inputs["clip"]
    assert pixels.shape == (3, 3, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert mask.sum(1).tolist() == [1, 3, 2]
    assert torch.equal(batch.targets["frames"], mask)
    assert batch.targets["group"].tolist() == [0, 2, 4]


@pytest.mark.parametrize("pooling", HEADS)
def test_clips_of_one_frame_are_image_retrieval(pooling) -> None:
    pictures = small_run.pixels()
    backbone, task = make(pictures, pooling=pooling)
    assert isinstance(task.clips, Stills)
    assert not are_clips(pictures)
    rows = small_run.manifest()
    plain = RetrievalTask(
        backbone, rows, pictures, validation=rows, validation_pixels=pictures, batch_size=5,
        precision=FP32,
    )  # fmt: skip
    chosen = np.array([0, 3, 7, 11, 19])
    with torch.no_grad():
        a, b = loss_of(backbone, task, chosen), loss_of(backbone, plain, chosen)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert task.validate(backbone) == pytest.approx(plain.validate(backbone))
    clips = encode_clips(backbone, Stills(pictures), precision=FP32)
    images = encode_images(backbone, pictures, precision=FP32)
    found = torch.nn.functional.normalize(clips.frames[:, 0], dim=1)
    torch.testing.assert_close(found, images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", HEADS)
@pytest.mark.parametrize("token_drop", [0.0, 0.4])
@pytest.mark.parametrize("reversed_negatives", [False, True])
def test_gradient_cache_gives_value_and_gradients_of_the_plain_loss(
    pooling, token_drop, reversed_negatives
) -> None:
    backbone, task = make(
        pooling=pooling, token_drop=token_drop, reversed_negatives=reversed_negatives
    )
    batch = task.collate(np.arange(5))
    results = []

    def encode(name, inputs):
        return task.encode(backbone, name, inputs)

    # With dropping, the plain loss is that over the same chunks: one chunk is not the same draw.
    sizes = (None, 2) if not token_drop else (2, 2)
    for chunk in sizes:
        torch.manual_seed(0)
        backbone.adapters.zero_grad()
        value, _ = gradient_cache.backward(
            encode, lambda f: task.loss(f, batch, backbone), batch.inputs, chunk
        )
        trained = backbone.adapters["default"].trained()
        results.append((value, {n: p.grad.clone() for n, p in trained.items()}))
    (a, first), (b, second) = results
    assert a == pytest.approx(b, rel=1e-5)
    assert any(g.abs().max() > 1e-3 for g in first.values())
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("pooling", HEADS)
def test_missing_frames_change_neither_loss_nor_scores(pooling) -> None:
    clips = Noise()
    backbone, task = make(clips, pooling=pooling)
    other = Noise()
    other.pixels[~other.mask] = 255
    _, same_task = make(other, backbone, pooling=pooling)
    with torch.no_grad():
        rows = np.arange(5)
        assert torch.equal(loss_of(backbone, task, rows), loss_of(backbone, same_task, rows))
    assert task.validate(backbone) == same_task.validate(backbone)


def test_backwards_mirrors_what_is_there() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1]]).bool()
    pixels = torch.arange(16).reshape(4, 4, 1, 1, 1).expand(4, 4, 3, 2, 2)
    found = backwards(pixels, mask)[:, :, 0, 0, 0].tolist()
    assert found == [[2, 1, 0, 3], [4, 5, 6, 7], [11, 10, 9, 8], [15, 13, 14, 12]]


def test_reversed_negatives_see_time_and_cost_order_blind_methods_a_constant() -> None:
    clips = Noise()
    clips.mask[:] = True
    frozen = backbones.tiny("clip")
    orders = {}
    for name, backbone in (("mv-adapter", make(clips)[0]), ("frozen", frozen)):
        losses = []
        for reversed_too in (False, True):
            # Also while patches are dropped: both directions lose the same ones.
            options = {"reversed_negatives": reversed_too, "token_drop": 0.5}
            task = make(clips, backbone, **options)[1]
            batch = task.collate(np.arange(5))
            torch.manual_seed(4)
            with torch.no_grad():
                features = {n: task.encode(backbone, n, x) for n, x in batch.inputs.items()}
                value, said = task.loss(features, batch, backbone)
            losses.append(float(value))
        assert losses[1] - losses[0] == pytest.approx(said["order"], abs=1e-5)
        orders[name] = said["order"]
    assert orders["frozen"] == pytest.approx(np.log(2), abs=1e-6)
    assert abs(orders["mv-adapter"] - np.log(2)) > 1e-5


@pytest.mark.parametrize("pooling", HEADS)
def test_scores_are_the_heads_and_ranks_are_those_of_the_whole_matrix(pooling) -> None:
    backbone, _ = make()
    rows, clips = small_run.manifest(captions=2), Noise()
    head = VideoRetrievalConfig(pooling=pooling).head()
    held_out = HeldOutClips(backbone, rows, clips, head, FP32)
    found, texts = held_out.encode(backbone)
    result = held_out.score(found, texts)
    matrix = head(texts, found.frames, found.mask).numpy()
    own = rows.item_index[:, None] == np.arange(len(rows.items))[None]
    best = np.where(own, matrix, -np.inf).max(1)
    t2v = 1 + (np.where(own, -np.inf, matrix) > best[:, None]).sum(1)
    best = np.where(own, matrix, -np.inf).max(0)
    v2t = 1 + (np.where(own, -np.inf, matrix) > best[None]).sum(0)
    assert result.text_to_image.r5 == pytest.approx(100 * np.mean(t2v <= 5))
    assert result.text_to_image.mean_rank == pytest.approx(t2v.mean())
    assert result.image_to_text.mean_rank == pytest.approx(v2t.mean())
    assert (pooling in result.similarity) == (pooling == "text-conditioned")


def test_ranks_from_scores_equal_ranks_from_features_in_any_blocks() -> None:
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(12, 4)), random.normal(size=(24, 4))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]
    groups = [f"g{i}" for i in range(12)]
    text_groups = [f"g{i // 2}" for i in range(24)]
    wanted = evaluate(images, texts, groups, text_groups)
    for block in (1, 30, 2**20):
        found = evaluate_scores(
            lambda t, i: (unit[1][t] @ unit[0][i].T).astype(np.float32),
            groups,
            text_groups,
            similarity="cosine",
            block=block,
        )
        assert found == wanted


def probe_table(pairs: int = 3) -> Manifest:
    return Manifest.from_rows(
        {"item": f"{p}{c}.mp4", "kind": "video", "text": f"{p} {c} first", "group": f"{p}{c}",
         "split": "probe", "probe": True, "pair": f"pair {p}"}
        for p in range(pairs) for c in "ab"
    )  # fmt: skip


def test_the_probe_is_half_for_what_cannot_tell_and_whole_for_what_can() -> None:
    rows = probe_table()
    index = rows.item_index

    def knows(r, i):
        return (index[r][:, None] == i[None]).astype(np.float32)

    def blind(r, i):  # a favourite caption, whatever the clip
        return np.broadcast_to((index[r] % 2)[:, None], (len(r), len(i)))

    def level(r, i):
        return np.zeros((len(r), len(i)), np.float32)

    best = order_probe(knows, rows)
    assert (best.accuracy, best.low, best.high) == (100, 100, 100)
    assert (best.pairs, best.clips) == (3, 6)
    for scores in (blind, level):
        found = order_probe(scores, rows)
        assert (found.accuracy, found.low, found.high) == (50, 50, 50)
    assert order_probe(lambda r, i: -knows(r, i), rows).accuracy == 0
    assert ProbeResult.from_dict(best.to_dict()) == best


def test_several_captions_of_a_clip_count_by_their_share() -> None:
    rows = Manifest.from_rows(
        {"item": item, "kind": "video", "text": f"{item} {n}", "group": item, "split": "test",
         "probe": True, "pair": "p"}
        for item in "ab" for n in range(2)
    )  # fmt: skip
    # Clip a: own captions 2 and 0 against 1 and 1: half of four. Clip b: 3 and 3 against 1 and 1.
    table = np.array([[2, 1], [0, 1], [1, 3], [1, 3]], np.float32)
    assert order_probe(lambda r, i: table[np.ix_(r, i)], rows).accuracy == 75


def test_which_rows_are_a_probe() -> None:
    assert probe_rows(small_run.manifest()) is None
    rows = probe_table()
    assert len(probe_rows(rows)) == 6
    broken = rows.without(["1b.mp4"])
    assert list(complete_pairs(broken).items) == ["0a.mp4", "0b.mp4", "2a.mp4", "2b.mp4"]
    with pytest.raises(UserError, match=r"pair 1.*has 1 clips"):
        probe_rows(broken)


def test_an_order_blind_model_is_at_chance_on_clips_that_run_backwards() -> None:
    class Mirrored(Noise):
        def __init__(self) -> None:
            super().__init__(6, 4)
            self.mask[:] = True
            self.pixels[1::2] = self.pixels[::2, ::-1]

    rows = probe_table()
    for pooling in HEADS:
        head = VideoRetrievalConfig(pooling=pooling).head()
        frozen = backbones.tiny("clip")
        probe = HeldOutClips(frozen, rows, Mirrored(), head, FP32)
        assert probe.probe(*probe.encode(frozen)).accuracy == 50
    backbone, _ = make()
    clips, _ = HeldOutClips(backbone, rows, Mirrored(), head, FP32).encode(backbone)
    pooled = clips.frames.mean(1)
    assert (pooled[::2] - pooled[1::2]).abs().max() > 1e-3  # mv-adapter tells them apart


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Real generated clips, a handful of each split."""
    folder = tmp_path_factory.mktemp("made") / "clips"
    make_clips(folder, Size(train=6, val=4, test=4, pairs=2))
    return folder


def job(folder, output, **changes) -> TrainJob:
    settings = {"backbone": "tiny:clip", "batch_size": 4, "epochs": 1, "guard": 0, "workers": 0,
                "precision": "fp32", "cache": folder.parent / "cache",
                "method_options": {"d": 8, "tied": 1}, "method": "mv-adapter"}  # fmt: skip
    return TrainJob(str(folder), output=output, **{**settings, **changes})


def test_a_folder_of_clips_just_works_and_is_measured_again_alike(folder, tmp_path, capsys) -> None:
    asked = job(folder, tmp_path / "run", frames=3, pooling="text-conditioned")
    result = run_training(asked)
    said = capsys.readouterr().err
    assert "task video-retrieval, up to 3 frames a clip (segments), text-conditioned" in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["job"]["task"] == "video_retrieval"
    assert (record["job"]["frames"], record["job"]["sampling"]) == (3, "segments")
    assert record["identity"]["task_options"]["pooling"] == "text-conditioned"
    assert record["order_probe"]["after"]["pairs"] == 2
    assert record["before"]["similarity"].startswith("text-conditioned")
    assert record["before"]["images"] == 4
    assert "Order probe over 2 pairs" in (tmp_path / "run" / "README.md").read_text()
    page = report_run(asked, result).read_text()
    assert "order probe (chance 50 %)" in page
    assert page.count("data:image") > 0

    found = run_evaluation(
        str(folder), adapter=tmp_path / "run", precision="fp32", workers=0,
        cache=folder.parent / "cache",
    )  # fmt: skip
    assert found.facts["frames"] == 3
    assert found.facts["pooling"] == "text-conditioned"
    assert found.adapted.result == result.after.result
    assert found.to_dict()["order_probe"]["adapted"] == record["order_probe"]["after"]
    other = run_evaluation(
        str(folder), adapter=tmp_path / "run", pooling="mean", frames=2, precision="fp32",
        workers=0, cache=folder.parent / "cache",
    )  # fmt: skip
    assert other.frozen.result.similarity == "cosine"
    assert other.facts["frames"] == 2


def test_a_comparison_has_a_zero_shot_row_per_head_and_the_probe(folder, tmp_path) -> None:
    base = job(folder, tmp_path, frames=2, quiet=True, method="cross-modal-adapter")
    labels = ["cross-modal-adapter", "cross-modal-adapter:pooling=text-conditioned"]
    contenders = [parse_contender(label) for label in labels]
    found = {}
    for contender in contenders:
        settings = {
            "data": str(folder), "output": str(tmp_path / contender.label[-4:]),
            "backbone": "tiny:clip", "batch_size": 4, "epochs": 1, "guard": 0, "workers": 0,
            "frames": 2, "quiet": True, "cache": str(folder.parent / "cache"),
            "method_options": {"r": 2, "d_s": 2}, **contender.settings,
        }  # fmt: skip
        found[contender.label, 0] = measure(settings)
    comparison = _comparison(base, contenders, [0], found)
    assert [row.method for row in comparison.rows] == [
        "zero-shot, mean pooling",
        "zero-shot, text-conditioned cosine, temperature 5",
        *labels,
    ]
    for row in comparison.rows:
        assert 0 <= row.metrics["order_probe"][0] <= 100
    assert any("order probe" in note for note in comparison.notes)


def test_a_contender_may_bring_its_own_lesson_in_time(folder, tmp_path) -> None:
    base = resolve_task(job(folder, tmp_path), read_manifest(folder))
    made = _job(base, parse_contender("mv-adapter:reversed_negatives=true,pooling=mean"), 1)
    assert made.task_options == {"pooling": "mean", "reversed_negatives": True}
    assert made.seed == 1
    plain = _job(base, parse_contender("cross-modal-adapter"), 1)
    assert not plain.task_options.get("reversed_negatives")
    photos = resolve_task(TrainJob("x"), small_run.manifest())
    with pytest.raises(UserError, match="reversed_negatives is for videos"):
        _job(photos, parse_contender("mv-adapter:reversed_negatives=true"), 0)


def test_what_it_refuses(folder, tmp_path) -> None:
    photos = small_run.manifest()
    assert resolve_task(TrainJob("x"), photos).task == "retrieval"
    with pytest.raises(UserError, match="pooling is for videos"):
        resolve_task(TrainJob("x", pooling="mean"), photos)
    stills = resolve_task(TrainJob("x", task="video-retrieval"), photos)
    assert (stills.task, stills.frames) == ("video_retrieval", 12)
    with pytest.raises(UserError, match="take at least 1"):
        TrainJob("x", frames=0)
    with pytest.raises(UserError, match="token_drop"):
        VideoRetrievalConfig(token_drop=1.0)
    with pytest.raises(UserError, match="no frame pooling"):
        VideoRetrievalConfig(pooling="max")
    with pytest.raises(UserError, match="no logit bias"):
        VideoRetrievalTask(backbones.tiny("clip"), photos, Noise(), objective="sigmoid")
    with pytest.raises(UserError, match="nothing to tell apart"):
        VideoRetrievalTask(backbones.tiny("clip"), photos.take([0]), Noise())
    setup = TaskSetup(
        backbones.tiny("clip"), photos, Noise(), None, None, 4, "one", "info-nce", 0, FP32
    )
    with pytest.raises(UserError, match="takes pictures, and these are clips"):
        make_picture_task(setup, {})
    config = VideoRetrievalConfig(reversed_negatives=True)
    with pytest.raises(UserError, match="info-nce objective"):
        VideoRetrievalTask(
            backbones.tiny("siglip"), photos, Noise(), objective="sigmoid", config=config
        )
