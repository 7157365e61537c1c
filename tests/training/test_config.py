from pathlib import Path

import pytest

from crossadapt.errors import UserError
from crossadapt.training.config import PRESETS, Recipe, make_recipe
from crossadapt.training.job import TrainJob, load_recipe, make_job


def test_the_default_is_the_papers_optimiser():
    recipe = Recipe()
    assert (recipe.optimiser, recipe.betas, recipe.eps) == ("bert-adam", (0.9, 0.98), 1e-6)
    assert (recipe.weight_decay, recipe.clip, recipe.warmup) == (0.2, 1.0, 0.1)
    paper = PRESETS["paper"]
    assert (paper.lr, paper.batch_size, paper.epochs, paper.captions) == (1e-5, 128, 5, "all")


def test_a_method_has_its_own_rate_unless_one_is_given():
    assert make_recipe(method="full").lr < make_recipe(method="cross-modal-adapter").lr
    assert make_recipe(method="full", lr=0.5).lr == 0.5
    assert make_recipe("paper", method="full").lr == 1e-5
    assert make_recipe(lr=None).lr == Recipe().lr


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0), ("epochs", 0), ("warmup", 1), ("weight_decay", -1), ("clip", -1), ("chunk", 0),
     ("evaluate_every", 0), ("patience", -1), ("guard", -1), ("checkpoint_seconds", -1),
     ("checkpoint_steps", 0), ("optimiser", "lion"), ("captions", "two")],
)  # fmt: skip
def test_impossible_numbers_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name} cannot be"):
        make_recipe(**{name: value})


def test_a_batch_of_one_is_refused():
    with pytest.raises(UserError, match="no negatives"):
        make_recipe(batch_size=1)


def test_unknown_names_name_the_nearest():
    with pytest.raises(UserError, match="did you mean 'paper'"):
        make_recipe("papr")
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        make_recipe(epoch=3)
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        make_job({"data": "x", "batch-sise": 3})
    with pytest.raises(UserError, match="no data"):
        make_job({})


def test_how_often_a_run_is_saved_is_no_part_of_what_it_is():
    assert make_recipe(checkpoint_seconds=1).identity() == make_recipe().identity()
    assert make_recipe(lr=1).identity() != make_recipe().identity()


def test_a_job_resolves_its_recipe():
    job = TrainJob("photos", lr=0.1, epochs=2)
    assert (job.recipe().lr, job.recipe().epochs, job.recipe().batch_size) == (0.1, 2, 128)
    scratch = TrainJob("photos", backbone="new:a.yaml", method="full")
    assert scratch.recipe() == PRESETS["from-scratch"]
    assert scratch.recipe().guard == 0


def test_a_recipe_file_and_its_smoke_part(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "data: photos\nlr: 1e-3\nmethod-options: {r: 8}\noutput: runs/x\nsmoke: {epochs: 1}\n"
    )
    job = load_recipe(path)
    assert (job.lr, job.method_options, job.epochs) == (1e-3, {"r": 8}, None)
    assert job.output == Path("runs/x")
    assert load_recipe(path, smoke=True, seed=4).recipe().epochs == 1
    path.write_text("data: photos\nsmoke: {epoch: 1}\n")
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "is a mapping"), ("a: [", "YAML"), ("data: x\nlr: fast\n", "must be a number")],
)
def test_a_recipe_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path / "b.yaml")
