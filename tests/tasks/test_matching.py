"""Matching: targets, negatives, momentum and queue by hand; exact under the gradient cache."""

from __future__ import annotations

import pytest
import torch
from tests import small_run
from tests.small_run import AtStep
from torch.nn import functional

from crossadapt.adapters.attach import attach
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import tiny
from crossadapt.backbones.precision import choose_precision
from crossadapt.errors import UserError
from crossadapt.tasks.matching import (
    MatchingConfig,
    MatchingTask,
    hard_negatives,
    itc_targets,
    momentum_contrast,
)
from crossadapt.tasks.momentum import FeatureQueue, MomentumCopy
from crossadapt.tasks.retrieval import RetrievalTask
from crossadapt.training import gradient_cache
from crossadapt.training.loop import fit
from crossadapt.training.optimisers import make_optimiser
from crossadapt.training.stopping import StopSignals


def prepare(method: str = "uniadapter", batch_size: int = 5, **options):
    backbone = tiny("blip")
    settings = {"uniadapter": {"r": 4, "init": "released"}, "adaptformer": {"r": 4}}[method]
    attach(backbone, make_config(method, settings))
    rows = small_run.manifest()
    task = MatchingTask(
        backbone,
        rows,
        small_run.pixels(),
        validation=rows,
        validation_pixels=small_run.pixels(),
        batch_size=batch_size,
        precision=choose_precision("fp32"),
        config=MatchingConfig(**options),
    )
    return backbone, task


def step(task, backbone, chunk=None):
    batch = task.collate(next(task.batches(0, 0)))
    torch.manual_seed(0)
    value, parts = gradient_cache.backward(
        lambda name, inputs: task.encode(backbone, name, inputs),
        lambda features: task.loss(features, batch, backbone),
        batch.inputs,
        chunk,
    )
    task.after_step()
    return value, parts, batch


# -- targets and negatives ---------------------------------------------------------------------


def test_soft_targets_sum_to_one_and_duplicates_share():
    right = torch.tensor([[True, False, True], [False, True, False]])
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    assert itc_targets(logits, right, 0.0).tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    soft = itc_targets(logits, right, 0.4)
    torch.testing.assert_close(soft.sum(1), torch.ones(2))
    torch.testing.assert_close(soft, 0.4 * logits.softmax(1) + 0.6 * right / right.sum(1)[:, None])


def test_hard_negatives_never_belong_and_follow_the_softmax():
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    logits = torch.tensor([[9.0, 9.0, 1.0, 0.0]]).repeat(4, 1)
    torch.manual_seed(0)
    draws = torch.stack([hard_negatives(logits, same)[1] for _ in range(2000)])
    assert set(draws[:, 0].tolist()) == {2, 3}
    share = (draws[:, 0] == 2).float().mean()
    expected = torch.tensor([1.0, 0.0]).softmax(0)[0]
    assert float(share) == pytest.approx(float(expected), abs=0.04)
    assert not (draws == torch.arange(4)).any()


def test_rows_without_any_wrong_partner_are_left_out():
    rows, columns = hard_negatives(torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool))
    assert (len(rows), len(columns)) == (0, 0)
    same = torch.tensor([[True, True], [False, True]])
    rows, columns = hard_negatives(torch.zeros(2, 2), same)
    assert (rows.tolist(), columns.tolist()) == ([1], [0])


def test_contrast_without_queue_and_alpha_is_info_nce_against_the_slow_features():
    torch.manual_seed(0)
    fast = [functional.normalize(torch.randn(4, 3), dim=1) for _ in range(2)]
    slow = [functional.normalize(torch.randn(4, 3), dim=1) for _ in range(2)]
    keys = {"group": torch.arange(4), "text": torch.arange(4)}
    empty = FeatureQueue(0, 3, ("group", "text"))
    found = momentum_contrast(tuple(fast), tuple(slow), empty, keys, scale=torch.tensor(5.0),
                              alpha=0.0)  # fmt: skip
    labels = torch.arange(4)
    expected = [functional.cross_entropy(5 * fast[i] @ slow[1 - i].T, labels) for i in (0, 1)]
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2)


def test_queued_pairs_are_negatives_unless_they_belong():
    torch.manual_seed(0)
    fast = tuple(functional.normalize(torch.randn(2, 3), dim=1) for _ in range(2))
    queued = functional.normalize(torch.randn(3, 3), dim=1)
    queue = FeatureQueue(8, 3, ("group", "text"))
    old = {"group": torch.tensor([1, 7, 8]), "text": torch.tensor([5, 6, 7])}
    queue.add({"image": queued, "text": queued}, old)
    keys = {"group": torch.tensor([0, 1]), "text": torch.tensor([0, 1])}
    found = momentum_contrast(fast, fast, queue, keys, scale=torch.tensor(2.0), alpha=0.0)
    total = 0.0
    for i in (0, 1):
        logs = (2 * fast[i] @ torch.cat([fast[1 - i], queued]).T).log_softmax(1)
        total -= (logs[0, 0] + (logs[1, 1] + logs[1, 2]) / 2) / 2
    torch.testing.assert_close(found, total / 2)


# -- momentum and queue ------------------------------------------------------------------------


def test_momentum_moves_each_tensor_once_and_stands_in_exactly():
    p = torch.nn.Parameter(torch.tensor([2.0]))
    copy = MomentumCopy({"p": p}, 0.995)
    with torch.no_grad():
        p.fill_(4.0)
    copy.update()
    assert float(copy.mean["p"]) == pytest.approx(0.995 * 2 + 0.005 * 4)
    with copy.in_place():
        assert p.tolist() == pytest.approx([2.01])
        assert not (p * 2).requires_grad
    assert p.tolist() == [4.0]
    assert (p * 2).requires_grad


def test_a_step_updates_shared_tensors_once_however_it_is_chunked():
    for chunk in (None, 2):
        backbone, task = prepare()
        shared = "vision.0.residual.shared.down.weight"
        with torch.no_grad():
            task.momentum.trained[shared] += 1
        before = task.momentum.mean[shared].clone()
        step(task, backbone, chunk)
        moved = task.momentum.mean[shared] - before
        torch.testing.assert_close(moved, torch.full_like(moved, 0.005), atol=1e-6, rtol=0)


def test_momentum_starts_at_the_adapters_own_start():
    """The released code copies before it initialises again; here copy and original agree."""
    _, task = prepare()
    assert all(torch.equal(task.momentum.mean[n], p) for n, p in task.momentum.trained.items())


def test_queue_keeps_the_newest_pairs():
    queue = FeatureQueue(3, 1, ("group",))
    assert len(queue) == 0

    def add(*values):
        rows = torch.tensor([[float(v)] for v in values])
        queue.add({"image": rows, "text": -rows}, {"group": torch.tensor(values)})

    add(1, 2)
    assert sorted(queue.key("group").tolist()) == [1, 2]
    add(3, 4)
    assert sorted(queue.key("group").tolist()) == [2, 3, 4]
    add(5, 6, 7, 8, 9)
    assert sorted(queue.key("group").tolist()) == [7, 8, 9]
    assert torch.equal(queue.features("image")[:, 0], queue.key("group").float())
    assert torch.equal(queue.features("text"), -queue.features("image"))


def test_alpha_rises_over_the_first_epoch_and_the_queue_fills(monkeypatch):
    backbone, task = prepare(alpha=0.4)
    seen = []
    real = momentum_contrast

    def watched(*args, **kwargs):
        seen.append(kwargs["alpha"])
        return real(*args, **kwargs)

    monkeypatch.setattr("crossadapt.tasks.matching.momentum_contrast", watched)
    for _ in range(6):
        step(task, backbone)
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert len(task.queue) == 20  # 30 pairs seen, 20 pairs trained on


# -- the loss ----------------------------------------------------------------------------------


def gradients(chunk):
    backbone, task = prepare(batch_size=7)
    for name, p in task.momentum.trained.items():
        torch.manual_seed(len(name))
        p.data += 0.05 * torch.randn(p.shape)
    value, parts, _ = step(task, backbone, chunk)
    return value, parts, {n: p.grad for n, p in backbone.adapters["default"].trained().items()}


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_gradient_cache_is_exact(chunk):
    value, parts, whole = gradients(None)
    cached, _, found = gradients(chunk)
    assert cached == pytest.approx(value, abs=1e-5)
    assert value == pytest.approx(parts["contrast"] + parts["match"], abs=1e-5)
    for name, gradient in whole.items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-3)


def test_one_right_and_two_wrong_pairs_per_row(monkeypatch):
    backbone, task = prepare()
    seen = {}
    real = backbone.match

    def watched(ids, mask, tokens, **kwargs):
        seen.update(ids=ids, tokens=tokens)
        return real(ids, mask, tokens, **kwargs)

    monkeypatch.setattr(backbone, "match", watched)
    _, _, batch = step(task, backbone)
    texts, count = batch.targets["ids"], len(batch.targets["ids"])
    assert len(seen["ids"]) == len(seen["tokens"]) == 3 * count
    assert torch.equal(seen["ids"][:count], texts)
    groups = batch.targets["text"]
    images = task.encode(backbone, "image", batch.inputs["image"])
    distance = (seen["tokens"][:, None] - images[None]).abs().amax((2, 3))
    which = distance.argmin(1)
    said = [(texts == row).all(1).nonzero()[0].item() for row in seen["ids"]]
    for index, (picture, text) in enumerate(zip(which.tolist(), said, strict=True)):
        assert (groups[picture] == groups[text]) == (index < count)


def test_training_separates_right_from_wrong_pairs():
    backbone, task = prepare(alpha=0.0, queue=0)
    recipe = small_run.recipe()
    trained = backbone.adapters["default"].trained()
    optimiser = make_optimiser(trained, recipe, {})
    first = step(task, backbone)[0]
    for _ in range(15):
        optimiser.zero_grad()
        last = step(task, backbone)[0]
        optimiser.step()
    assert last < first


# -- the run -----------------------------------------------------------------------------------


def run(output, *, resume=False, wrap=lambda task: task):
    backbone, task = prepare()
    result = fit(backbone, wrap(task), small_run.recipe(epochs=2, guard=0), output=output,
                 precision=choose_precision("fp32"), resume=resume, quiet=True)  # fmt: skip
    trained = {n: p.detach().clone() for n, p in backbone.adapters["default"].trained().items()}
    return result, trained, task.state()


def test_a_run_moves_adapters_and_heads_and_leaves_the_temperature(tmp_path):
    """Neither the model nor its temperature trains, and the task has no parameter of its own."""
    backbone, task = prepare()
    temperature = backbone.logit_scale.clone()
    before = {n: p.detach().clone() for n, p in backbone.named_parameters()}
    result = fit(backbone, task, small_run.recipe(epochs=1, guard=0, warmup=0.0), output=tmp_path,
                 precision=choose_precision("fp32"), quiet=True)  # fmt: skip
    moved = {n for n, p in backbone.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.startswith("adapters.")}
    copies = {name.split(".")[3].partition("/")[0] for name in moved if ".copies." in name}
    assert copies == {"vision_proj", "text_proj", "itm_head"}
    assert torch.equal(backbone.logit_scale, temperature)
    assert result.trained == sum(before[name].numel() for name in moved)


@pytest.fixture
def stop(monkeypatch):
    """What a signal does to the loop, without one: real signals are the matter of test_loop."""
    asked = []

    def raised(signals, world, device):
        return bool(asked) and asked.pop()

    monkeypatch.setattr(StopSignals, "raised", raised)
    return lambda: asked.append(True)


def test_a_resumed_run_equals_an_uninterrupted_one_queue_and_momentum_included(tmp_path, stop):
    whole, wanted, state = run(tmp_path / "whole")
    first, _, _ = run(tmp_path / "cut", wrap=lambda task: AtStep(task, 3, stop))
    assert (first.status, whole.status) == ("interrupted", "finished")
    second, found, again = run(tmp_path / "cut", resume=True)
    assert second.step == whole.step == 8
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_checkpoint_of_another_state_is_refused(tmp_path, stop):
    run(tmp_path, wrap=lambda task: AtStep(task, 3, stop))

    class Bigger(AtStep):
        def state(self):
            return {**self.task.state(), "other": torch.zeros(1)}

    with pytest.raises(UserError, match="state of this run"):
        run(tmp_path, resume=True, wrap=lambda task: Bigger(task, 99, stop))


# -- refusals ----------------------------------------------------------------------------------


def test_needs_a_fusion_tower():
    backbone = tiny("clip")
    attach(backbone, make_config("adaptformer", {"r": 4}))
    with pytest.raises(UserError, match="fusion tower"):
        MatchingTask(backbone, small_run.manifest(), small_run.pixels(), batch_size=5)


def test_needs_something_to_train():
    with pytest.raises(UserError, match="nothing is trained"):
        MatchingTask(tiny("blip"), small_run.manifest(), small_run.pixels(), batch_size=5)


def test_several_processes_are_refused(monkeypatch):
    for name, value in (("is_available", True), ("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    with pytest.raises(UserError, match="one process"):
        prepare()


@pytest.mark.parametrize("method", ["uniadapter", "full", "projection"])
def test_retrieval_would_leave_the_fusion_tower_idle(method, tmp_path):
    backbone = tiny("blip")
    attach(backbone, make_config(method, None))
    task = RetrievalTask(backbone, small_run.manifest(), small_run.pixels(), batch_size=5)
    with pytest.raises(UserError, match="does not run the fusion tower"):
        fit(backbone, task, small_run.recipe(), output=tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [("alpha", 1.5), ("momentum", 1.0), ("queue", -1), ("match_weight", 0.0), ("augment", "x")],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(UserError, match=option):
        MatchingConfig(**{option: value})
