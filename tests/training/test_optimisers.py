import pytest
import torch
from torch.nn import Parameter

from crossadapt.training.config import make_recipe
from crossadapt.training.optimisers import BertAdam, make_optimiser, multiplier


def test_schedule_values_of_the_note():
    assert multiplier(0, 1000, 0.1) == 0
    assert multiplier(50, 1000, 0.1) == pytest.approx(0.5)
    assert multiplier(99, 1000, 0.1) == pytest.approx(0.99)
    assert multiplier(100, 1000, 0.1) == pytest.approx(0.9755, abs=1e-4)
    assert multiplier(500, 1000, 0.1) == pytest.approx(0.5)
    assert multiplier(1000, 1000, 0.1) == pytest.approx(0)
    assert multiplier(0, 10, 0) == 1


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
