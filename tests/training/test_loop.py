import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from tests import small_run

from crossadapt.errors import UserError
from crossadapt.training import loop as loop_module
from crossadapt.training.checkpoints import Progress
from crossadapt.training.events import read_events
from crossadapt.training.stopping import judge


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: folder, result, trained tensors."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *small_run.run(folder)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_from_zero_shot_to_the_end(whole):
    folder, result, _ = whole
    assert (result.status, result.step, result.total) == ("finished", 12, 12)
    assert set(result.zero_shot) == set(result.best)
    events = read_events(folder / "events.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds[:2] == ["config", "zero-shot"]
    assert kinds[-1] == "end"
    assert kinds.count("step") == 12
    assert kinds.count("eval") == 3
    step = next(event for event in events if event["event"] == "step")
    assert {"loss", "lr", "norm", "pairs_per_second", "peak_memory"} <= step.keys()
    assert step["lr"] == 0


def test_the_same_run_twice_is_the_same_bit_for_bit(whole, tmp_path):
    assert same(small_run.run(tmp_path)[1], whole[2])


def test_another_seed_is_another_run(whole, tmp_path):
    backbone, task = small_run.prepare()
    loop_module.fit(backbone, task, small_run.recipe(), output=tmp_path, seed=1, quiet=True)
    assert not same(backbone.adapters["default"].trained(), whole[2])


def test_strength_is_that_of_validation_and_of_the_end_not_of_training(whole, tmp_path):
    backbone, task = small_run.prepare()
    seen = []
    validate, encode = task.validate, task.encode

    def validating(backbone):
        seen.append(("validation", backbone.adapters["default"].strength))
        return validate(backbone)

    def encoding(backbone, stream, inputs):
        seen.append(("training", backbone.adapters["default"].strength))
        return encode(backbone, stream, inputs)

    task.validate, task.encode = validating, encoding
    recipe = replace(small_run.recipe(), strength=0.5)
    result = loop_module.fit(backbone, task, recipe, output=tmp_path, quiet=True)
    # The first validation is of the frozen model, whose adapter is not active.
    assert set(seen[1:]) == {("training", 1.0), ("validation", 0.5)}
    assert backbone.adapters["default"].strength == 0.5
    assert result.best == pytest.approx(validate(backbone))
    assert same(backbone.adapters["default"].trained(), whole[2]) or result.best_step != 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 4, 7])
def test_stopping_saves_and_resuming_equals_the_whole_run(whole, tmp_path, step, number):
    def stop():
        os.kill(os.getpid(), number)

    # Not always Python's own: a shell's background jobs start with SIGINT ignored.
    handler = signal.getsignal(number)
    first, _ = small_run.run(tmp_path, task=lambda t: small_run.AtStep(t, step, stop))
    assert (first.status, first.step) == ("interrupted", step)
    assert signal.getsignal(number) is handler
    second, tensors = small_run.run(tmp_path, resume=True)
    assert (second.status, second.step) == ("finished", 12)
    assert same(tensors, whole[2])
    assert second.best == whole[1].best
    wanted, found = (read_events(f / "events.jsonl") for f in (whole[0], tmp_path))
    steps = [[(e["step"], e["loss"]) for e in x if e["event"] == "step"] for x in (wanted, found)]
    assert steps[0] == steps[1]


def test_resuming_a_finished_run_changes_nothing(whole):
    folder, result, tensors = whole
    again, found = small_run.run(folder, resume=True)
    assert (again.status, again.step, again.best) == ("finished", 12, result.best)
    assert same(found, tensors)


def test_resuming_with_other_settings_names_them(whole):
    with pytest.raises(UserError, match=r"lr: 0\.01 then, 0\.02 now"):
        small_run.run(whole[0], resume=True, lr=0.02)


def test_the_backbone_is_untouched(tmp_path):
    backbone, task = small_run.prepare()
    before = {name: p.clone() for name, p in backbone.model.state_dict().items()}
    loop_module.fit(backbone, task, small_run.recipe(epochs=1), output=tmp_path, quiet=True)
    assert same(before, backbone.model.state_dict())
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_a_chunked_run_is_close_to_the_plain_one(tmp_path):
    losses = []
    for chunk in (None, 2):
        backbone, task = small_run.prepare(dropout=0.0)
        folder = tmp_path / str(chunk)
        recipe = small_run.recipe(epochs=1, chunk=chunk)
        precision = loop_module.choose_precision("fp32")
        loop_module.fit(backbone, task, recipe, output=folder, precision=precision, quiet=True)
        events = read_events(folder / "events.jsonl")
        losses.append([e["loss"] for e in events if e["event"] == "step"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(tmp_path):
    def broken(task):
        class Task(small_run.AtStep):
            def loss(self, features, batch, backbone):
                value, parts = self.task.loss(features, batch, backbone)
                return (value * float("nan") if self.count == 6 else value), parts

        return Task(task, 0, None)

    with pytest.raises(UserError, match="diverged: loss nan") as error:
        small_run.run(tmp_path, task=broken)
    assert "step 6 of 12" in error.value.where
    assert "learning rate" in error.value.where
    assert str(tmp_path / "checkpoints" / "last.safetensors") in error.value.where
    resumed, _ = small_run.run(tmp_path, resume=True)
    assert resumed.status == "finished"


def scores(*values):
    """Statuses after judging validations with these scores against a zero-shot of 50."""
    progress = Progress(zero_shot={"rsum": 50.0})
    recipe = small_run.recipe(patience=3, guard=2)
    best = []
    for step, value in enumerate(values, 1):
        progress.step = step
        best.append(judge(progress, {"rsum": value}, "rsum", recipe))
    return progress, best


def test_early_stop_counts_validations_without_a_new_best():
    progress, best = scores(60, 70, 70, 60, 65)
    assert best == [True, True, False, False, False]
    assert (progress.status, progress.best_step) == ("early-stop", 2)


def test_the_guard_counts_validations_below_zero_shot_in_a_row():
    assert scores(40, 60, 40, 55)[0].status == "running"
    assert scores(60, 40, 45)[0].status == "below-zero-shot"
    assert scores(50, 50)[0].status == "running"
    assert scores(20, 30, 40, 45)[0].status == "running"  # still climbing from below
    assert scores(20, 30, 25, 28)[0].status == "below-zero-shot"


def test_a_hopeless_run_ends_loudly(tmp_path):
    class Worse(small_run.AtStep):
        def validate(self, backbone):
            return {"rsum": 100.0 - self.count}

    result, _ = small_run.run(tmp_path, guard=2, task=lambda t: Worse(t, 0, None))
    assert (result.status, result.step, result.best_step) == ("below-zero-shot", 8, 4)


def test_without_validation_the_last_state_is_the_result(tmp_path):
    backbone, task = small_run.prepare(held_out=False)
    result = loop_module.fit(backbone, task, small_run.recipe(), output=tmp_path, quiet=True)
    assert (result.status, result.best, result.best_step) == ("finished", {}, 12)


def test_a_task_of_its_own_tensors_trains_and_saves_them(tmp_path):
    head = torch.nn.Linear(12, 12)
    start = head.weight.detach().clone()

    class WithHead(small_run.AtStep):
        def parameters(self):
            return dict(head.named_parameters(prefix="head"))

        def loss(self, features, batch, backbone):
            value, _ = self.task.loss(features, batch, backbone)
            extra = head(features["image"].float()).square().mean()
            return value + extra, {"extra": extra.item()}

    result, tensors = small_run.run(tmp_path, task=lambda t: WithHead(t, 0, None), chunk=2)
    assert not torch.equal(head.weight, start)
    assert result.trained == sum(t.numel() for t in tensors.values()) + 12 * 12 + 12
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert any("extra" in json.loads(line) for line in lines)


def test_a_task_with_too_few_batches_is_found_out(tmp_path):
    class Short(small_run.AtStep):
        def steps_per_epoch(self):
            return 5

    with pytest.raises(ValueError, match="shorter"):
        small_run.run(tmp_path, task=lambda t: Short(t, 0, None))
