import pytest
import torch
from torch.nn import Parameter

from crossadapt.errors import UserError
from crossadapt.training.config import make_recipe
from crossadapt.training.optimisers import BertAdam, learning_rate, make_optimiser, multiplier


def test_schedule_values_of_the_note():
    assert multiplier(0, 1000, 0.1) == 0
    assert multiplier(50, 1000, 0.1) == pytest.approx(0.5)
    assert multiplier(99, 1000, 0.1) == pytest.approx(0.99)
    assert multiplier(100, 1000, 0.1) == pytest.approx(0.9755, abs=1e-4)
    assert multiplier(500, 1000, 0.1) == pytest.approx(0.5)
    assert multiplier(1000, 1000, 0.1) == pytest.approx(0)
    assert multiplier(0, 10, 0) == 1


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({}, [1e-5, 3.5e-3, 3.166e-3, 2.291e-3, 1.209e-3]),
        ({"epochs": 2, "lr": 2.6e-3}, [1e-5, 2.6e-3]),
    ],
)
def test_rates_by_epoch_of_maple_and_apollo(changes, rates):
    """Base-to-novel, and the two-epoch run of the cross-data-set experiments."""
    recipe = make_recipe("maple", **changes)
    for epoch, rate in enumerate(rates):
        for step in (0, 6):
            found = learning_rate(recipe, 7 * epoch + step, per_epoch=7)
            assert found == pytest.approx(rate, rel=2e-4)


def test_rates_by_step_are_the_multiplier_and_keep_the_identity_of_older_runs():
    recipe = make_recipe(lr=2e-3, epochs=10)
    assert learning_rate(recipe, 30, per_epoch=6) == 2e-3 * multiplier(30, 60, 0.1)
    assert "schedule" not in recipe.identity()
    assert make_recipe("maple").identity()["schedule"] == "epochs"
    with pytest.raises(UserError, match="use steps or epochs"):
        make_recipe(schedule="linear")


def test_sgd_by_hand():
    p = Parameter(torch.ones(2, 2))
    recipe = make_recipe("maple", lr=0.1, weight_decay=0.5)
    optimiser = make_optimiser({"weight": p}, recipe)
    value, moved = torch.ones(2, 2), torch.zeros(2, 2)
    for _ in range(3):
        p.grad = torch.full((2, 2), 2.0)
        optimiser.step()
        moved = 0.9 * moved + (2.0 + 0.5 * value)
        value = value - 0.1 * moved
    assert torch.allclose(p, value)


def test_bert_adam_by_hand():
    torch.manual_seed(0)
    start = torch.randn(3, 2)
    p = Parameter(start.clone())
    optimiser = BertAdam([p], lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    value, m, v = start.clone(), torch.zeros(3, 2), torch.zeros(3, 2)
    for _ in range(3):
        g = torch.randn(3, 2)
        p.grad = g.clone()
        optimiser.step()
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        value = value - 0.1 * (m / (v.sqrt() + 1e-6) + 0.2 * value)
    assert torch.allclose(p, value, atol=1e-6)


@pytest.mark.parametrize("name", ["bert-adam", "adamw"])
def test_only_matrices_are_decayed(name):
    trained = {
        "weight": Parameter(torch.ones(2, 2)),
        "bias": Parameter(torch.ones(2)),
        "logit_scale": Parameter(torch.ones(())),
    }
    optimiser = make_optimiser(trained, make_recipe(optimiser=name, lr=0.1, weight_decay=0.5))
    for p in trained.values():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    assert torch.allclose(trained["weight"], torch.full((2, 2), 0.95))
    assert torch.equal(trained["bias"], torch.ones(2))
    assert torch.equal(trained["logit_scale"], torch.ones(()))


def test_a_parameter_without_gradient_stays():
    with_gradient, without = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
    with_gradient.grad = torch.ones(2, 2)
    BertAdam([with_gradient, without], lr=0.1).step()
    assert torch.equal(without, torch.ones(2, 2))
    assert not torch.equal(with_gradient, torch.ones(2, 2))
