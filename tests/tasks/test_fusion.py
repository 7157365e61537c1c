"""The fusion task: its loss against a plain computation, its state, its data, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import small_run
from tests.adapting import same, small
from torch.nn import functional as F

from crossadapt.adapters.attach import attach
from crossadapt.adapters.folder import save_adapter
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import tiny
from crossadapt.backbones.precision import choose_precision
from crossadapt.errors import UserError
from crossadapt.layers.momentum import NOBODY, same_keys
from crossadapt.tasks.fusion import FusionTask
from crossadapt.tasks.momentum_contrast import FusionConfig
from crossadapt.tasks.retrieval import RetrievalTask
from crossadapt.training import gradient_cache
from crossadapt.training.loop import fit

OPTIONS = {"transform": 8, "graph": 8, "heads": 2, "output": 8, "dropout": 0.0}


def canvases(count: int = 20) -> np.ndarray:
    """Noise of the size that both tiny members together ask for."""
    shape = (count, 3, 64, 32)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def prepare(task: dict | None = None, batch_size: int = 5, rows=None, **options):
    backbone = small("fuse")
    adapter = attach(backbone, make_config("hada", {**OPTIONS, **options}))
    rows = rows or small_run.manifest()
    made = FusionTask(
        backbone,
        rows,
        canvases(),
        validation=rows,
        validation_pixels=canvases(),
        batch_size=batch_size,
        precision=choose_precision("fp32"),
        config=FusionConfig(**{"queue": 4 * batch_size, **(task or {})}),
    )
    return backbone, adapter, made


def encoded(backbone, task, rows=range(5)):
    batch = task.collate(np.asarray(rows))
    return {n: task.encode(backbone, n, x) for n, x in batch.inputs.items()}, batch


def step(backbone, adapter, task, rows=range(5), rate: float = 0.05) -> dict[str, float]:
    """One plain gradient step."""
    features, batch = encoded(backbone, task, rows)
    loss, parts = task.loss(features, batch, backbone)
    tensors = [*adapter.trained().values(), *task.parameters().values()]
    for p in tensors:
        p.grad = None
    loss.backward()
    with torch.no_grad():
        for p in tensors:
            if p.grad is not None:
                p -= rate * p.grad
    task.after_step()
    return dict(parts)


@pytest.mark.parametrize("mix", ["none", "first", "all"])
def test_the_contrast_equals_a_plain_computation(mix: str) -> None:
    backbone, adapter, task = prepare({"matching": 0.0, "image_weight": 0.25}, mix=mix)
    for start in (0, 5, 10, 15):  # a whole epoch, so that soft targets have their full share
        step(backbone, adapter, task, range(start, start + 5))
    rows = [0, 4, 7, 8, 12]
    features, batch = encoded(backbone, task, rows)
    loss, parts = task.loss(features, batch, backbone)

    weights = adapter.join.weights().detach()
    tau = float(task.objective.temperature.detach())
    slices = {"z": slice(0, 8), "slow": slice(8, 16), 1: slice(16, 28), 2: slice(28, 52)}
    part = {n: {k: x[:, s].detach() for k, s in slices.items()} for n, x in features.items()}
    queue = task.objective.queue
    expected = 0.0
    for name, other, weight in (("image", "text", 0.25), ("text", "image", 0.75)):
        stored = queue.rows[other].split(task.objective.widths, 1)
        keys = torch.cat([batch.targets["keys"], queue.keys])
        for i in range(5):
            logits, slow = [], []
            for j in range(len(keys)):
                values = [stored[k][j - 5] if j >= 5 else None for k in range(len(stored))]
                z = part[other]["slow"][j] if j < 5 else values[0]
                own = float(weights[0] * (part[name]["z"][i] @ z))
                old = float(weights[0] * (part[name]["slow"][i] @ z))
                for member in (1, 2) if mix != "none" else ():
                    e = part[other][member][j] if j < 5 else values[member]
                    own += float(weights[member] * (part[name][member][i] @ e))
                    old += float(weights[member] * (part[name][member][i] @ e))
                logits.append(own / tau)
                slow.append(old / tau)
            match = (keys == batch.targets["keys"][i]).any(1).float()
            target = 0.4 * torch.tensor(slow).softmax(0) + 0.6 * match / match.sum()
            log = torch.tensor(logits).log_softmax(0)
            expected += weight * -float((target * log).sum()) / 5
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert parts["itc"] == pytest.approx(expected, rel=1e-4)


def test_what_the_features_are() -> None:
    backbone, adapter, task = prepare()
    adapter.eval()
    features, batch = encoded(backbone, task)
    pixels = backbone.preprocess.normalise(torch.from_numpy(canvases()[:5]))
    with torch.no_grad():
        fused = backbone.encode_image(pixels)
    image = features["image"].detach()
    torch.testing.assert_close(image[:, :8], fused[:, :8])
    # The momentum copies are equal to the branches until the first update.
    assert torch.equal(image[:, :8], image[:, 8:16])
    for member, part in zip(backbone.members, image[:, 16:].split([12, 24], 1), strict=True):
        own = F.normalize(member.encode_image(_region(backbone, member, pixels)), dim=1)
        torch.testing.assert_close(part, own.detach())
    assert len(batch.inputs["image"]) == 6


def _region(backbone, member, pixels):
    return backbone.preprocess.split(pixels)[backbone.members.index(member)].contiguous()


def test_an_update_moves_copies_queue_and_step() -> None:
    backbone, adapter, task = prepare()
    objective = task.objective
    before = {n: p.clone() for n, p in objective.momentum.state_dict().items()}
    slow = encoded(backbone, task)[0]["image"][:, 8:16].detach()
    step(backbone, adapter, task)
    online = adapter.join.branches.state_dict()
    for name, old in before.items():
        expected = 0.995 * old + 0.005 * online[name].detach()
        torch.testing.assert_close(objective.momentum.state_dict()[name], expected)
    assert any(not torch.equal(online[n].detach(), old) for n, old in before.items())
    assert not any(p.requires_grad for p in objective.momentum.parameters())
    assert int(objective.queue.pointer) == 5
    assert torch.equal(objective.queue.rows["image"][:5], slow)
    assert torch.equal(objective.queue.keys[:5], task._keys[:5])
    assert (objective.queue.keys[5:] == NOBODY).all()
    assert objective.steps == 1


def test_soft_targets_rise_over_the_first_epoch() -> None:
    """At first targets are hard, so `distil` cannot matter; later it does."""
    losses = {}
    for distil in (0.0, 0.8):
        backbone, adapter, task = prepare({"distil": distil, "matching": 0.0})
        losses[distil] = [
            step(backbone, adapter, task, range(start, start + 5))["itc"]
            for start in (0, 5, 10, 15)
        ]
    assert losses[0.0][0] == losses[0.8][0]
    assert losses[0.0][1] != losses[0.8][1]


def test_temperature_keeps_its_bounds_and_is_no_part_of_the_adapter() -> None:
    backbone, adapter, task = prepare()
    temperature = task.parameters()["temperature"]
    assert float(temperature.detach()) == pytest.approx(0.07)
    for start, kept in ((-1.0, 0.001), (2.0, 0.5)):
        with torch.no_grad():
            temperature.fill_(start)
        task.after_step()
        assert float(temperature.detach()) == pytest.approx(kept)
    assert not any("temperature" in name for name in adapter.trained())
    with torch.no_grad():
        temperature.fill_(0.07)
    step(backbone, adapter, task)
    assert bool(temperature.grad.any())


@pytest.mark.parametrize(("start", "kept"), [(-0.5, 0.1), (1.5, 0.9)])
def test_the_share_is_inside_its_bounds_after_every_step(start: float, kept: float) -> None:
    backbone, adapter, task = prepare(mix="first")
    with torch.no_grad():
        adapter.join.mix.fill_(start)
    step(backbone, adapter, task, rate=1e-4)
    assert float(adapter.join.mix.detach()) == pytest.approx(kept)


def test_momentum_noise_is_the_released_form() -> None:
    _, _, task = prepare({"momentum_noise": True}, norm="batch", dropout=0.3)
    assert task.objective.momentum["text"].training
    _, adapter, task = prepare(norm="batch", dropout=0.3)
    assert not task.objective.momentum["text"].training
    adapter.train()
    assert not task.objective.momentum["text"].training


def test_a_batch_of_one_group_has_no_matching_loss() -> None:
    backbone, adapter, task = prepare()
    parts = step(backbone, adapter, task, [0, 0, 0, 0, 0])
    assert parts["itm"] == 0.0
    assert adapter.join.matching.linear.weight.grad is None
    assert step(backbone, adapter, task)["itm"] > 0


def test_matching_of_an_untrained_head_is_that_of_a_coin() -> None:
    backbone, adapter, task = prepare()
    with torch.no_grad():
        adapter.join.matching.linear.weight.mul_(1e-3)
        adapter.join.matching.linear.bias.zero_()
    assert step(backbone, adapter, task)["itm"] == pytest.approx(0.6931, abs=1e-2)


def test_captions_of_one_picture_are_positives() -> None:
    rows = small_run.manifest(count=10, captions=2)
    backbone, _, task = prepare(rows=rows, batch_size=4)
    _, batch = encoded(backbone, task, [0, 1, 2, 3])
    found = same_keys(batch.targets["keys"], batch.targets["keys"])
    pair = torch.ones(2, 2, dtype=torch.bool)
    assert torch.equal(found, torch.block_diag(pair, pair).bool())


def gradients(chunk: int | None):
    backbone, adapter, task = prepare()
    torch.manual_seed(1)
    batch = task.collate(np.arange(5))
    value, _ = gradient_cache.backward(
        lambda stream, inputs: task.encode(backbone, stream, inputs),
        lambda found: task.loss(found, batch, backbone),
        batch.inputs,
        chunk,
    )
    return value, {n: p.grad for n, p in adapter.named_trained()}


def test_the_gradient_cache_gives_the_same_loss_and_gradients() -> None:
    plain, wanted = gradients(None)
    cached, found = gradients(2)
    assert cached == pytest.approx(plain, abs=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_features_that_do_not_fit_are_computed_anew_with_the_same_result() -> None:
    backbone, _, task = prepare()
    _, _, anew = prepare({"cache_mb": 0})
    assert task.stores["image"].kept is not None
    assert anew.stores["image"].kept is None
    assert anew.stores["text"].kept is None
    rows = [3, 11, 0, 19, 5]
    kept, _ = encoded(backbone, task, rows)
    computed, batch = encoded(anew.backbone, anew, rows)
    assert batch.inputs["image"][0].dtype == torch.uint8
    for name in kept:
        torch.testing.assert_close(computed[name], kept[name], atol=1e-5, rtol=1e-4)
    assert float(anew.fusion.deviation) == pytest.approx(float(task.fusion.deviation), rel=1e-6)


def test_the_scale_is_that_of_all_unit_features() -> None:
    _, _, task = prepare()
    values = []
    rows = torch.arange(20)
    for stream in ("image", "text"):
        tensors = task.stores[stream].rows(rows)
        for i in range(0, len(tensors), 3):
            embedding, tokens, mask = tensors[i : i + 3]
            values += [F.normalize(x, dim=-1).flatten() for x in (embedding, tokens[mask])]
    values = torch.cat(values).double()
    assert float(task.fusion.mean) == pytest.approx(float(values.mean()), abs=1e-6)
    expected = float(values.std(correction=0))
    assert float(task.fusion.deviation) == pytest.approx(expected, rel=1e-5)


def run(folder, resume: bool = False, wrap=None, **changes):
    backbone, adapter, task = prepare(norm="batch", mix="first", dropout=0.1)
    result = fit(
        backbone,
        task if wrap is None else wrap(task),
        small_run.recipe(guard=0, **changes),
        output=folder,
        precision=choose_precision("fp32"),
        resume=resume,
        quiet=True,
    )
    state = {n: x.clone() for n, x in task.state().items()}
    kept = {n: x.clone() for n, x in adapter.kept().items()}
    return result, {n: p.detach().clone() for n, p in adapter.named_trained()}, kept, state


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path) -> None:
    whole, tensors, kept, state = run(tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    class Wrapped(small_run.AtStep):
        def state(self):
            return self.task.state()

        def after_step(self):
            self.task.after_step()

        trains_join = True

    with pytest.raises(Stop):
        run(
            tmp_path / "cut",
            wrap=lambda task: Wrapped(task, 7, stop),
            checkpoint_steps=1,
            checkpoint_seconds=1e9,
        )
    again, *found = run(tmp_path / "cut", resume=True)
    assert again.step == whole.step == 12
    assert again.best == whole.best
    for a, b in zip(found, (tensors, kept, state), strict=True):
        assert list(a) == list(b)
        assert same(a, b)


def test_the_best_checkpoint_brings_its_running_statistics_back(tmp_path) -> None:
    from safetensors import safe_open

    result, tensors, kept, _ = run(tmp_path)
    with safe_open(tmp_path / "checkpoints" / "best.safetensors", framework="pt") as file:
        for name, value in kept.items():
            assert torch.equal(file.get_tensor(f"state/adapter.{name}"), value)
        assert not any(key.startswith("state/task.") for key in file.keys())  # noqa: SIM118
    # The branches, the matching head and the share, and the task's temperature.
    assert result.trained == sum(x.numel() for x in tensors.values()) + 1


def test_a_second_stage_starts_where_the_first_ended(tmp_path) -> None:
    backbone, adapter, task = prepare()
    step(backbone, adapter, task)
    save_adapter(backbone, "default", tmp_path / "first")
    values = {n: p.detach().clone() for n, p in adapter.named_trained()}
    scale = float(adapter.join.deviation)
    backbone, adapter, task = prepare({"start_from": str(tmp_path / "first")}, mix="first")
    found = {n: p.detach() for n, p in adapter.named_trained()}
    assert found.pop("join.mix").tolist() == [0.5]
    assert same(found, values)
    assert float(adapter.join.deviation) == scale
    for a, b in zip(
        task.objective.momentum.parameters(), adapter.join.branches.parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_start_that_does_not_fit_is_refused(tmp_path) -> None:
    backbone, _, _ = prepare()
    save_adapter(backbone, "default", tmp_path / "a")
    with pytest.raises(UserError, match="shape"):
        prepare({"start_from": str(tmp_path / "a")}, heads=4)
    other = tiny("clip")
    attach(other, make_config("adaptformer", {"r": 4}))
    save_adapter(other, "default", tmp_path / "b")
    with pytest.raises(UserError, match="is adaptformer, not hada"):
        prepare({"start_from": str(tmp_path / "b")})


def test_other_methods_and_other_tasks_are_refused(tmp_path) -> None:
    backbone = tiny("clip")
    attach(backbone, make_config("adaptformer", {"r": 4}))
    with pytest.raises(UserError, match="trains the method hada"):
        FusionTask(backbone, small_run.manifest(), small_run.pixels())
    backbone, _, _ = prepare()
    rows = small_run.manifest()
    task = RetrievalTask(backbone, rows, canvases(), batch_size=5)
    with pytest.raises(UserError, match="does not train all parts of hada"):
        fit(backbone, task, small_run.recipe(), output=tmp_path, quiet=True)


@pytest.mark.parametrize(
    "wrong",
    [{"queue": 0}, {"momentum": 2.0}, {"distil": -0.1}, {"temperature": 0.0}, {"matching": -1.0}],
)
def test_wrong_options_are_refused(wrong) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} cannot be"):
        FusionConfig(**wrong)


def test_a_queue_that_does_not_fit_the_batch_is_refused_and_the_usual_one_fits() -> None:
    with pytest.raises(UserError, match="cannot be filled"):
        prepare({"queue": 12})
    _, _, task = prepare({"queue": None}, batch_size=6)
    assert len(task.objective.queue) == 4092
