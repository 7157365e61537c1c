import math

import pytest
import torch
from torch.nn import functional as F

from crossadapt.tasks import objectives


@pytest.fixture
def features():
    torch.manual_seed(0)
    return torch.randn(6, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)


def test_a_constant_matrix_costs_the_log_of_its_size():
    same = torch.ones(7, 4)
    assert objectives.info_nce(same, same, 30.0).item() == pytest.approx(math.log(7), abs=1e-5)


def test_symmetric_in_pictures_and_texts(features):
    images, texts = features
    positives = objectives.same(torch.tensor([0, 1, 1, 2, 3, 0]))
    there = objectives.info_nce(images, texts, 20.0, positives)
    assert torch.allclose(there, objectives.info_nce(texts, images, 20.0, positives.T))


def test_equals_plain_cross_entropy_without_duplicates(features):
    images, texts = features
    logits = 20 * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    labels = torch.arange(6)
    plain = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    ours = objectives.info_nce(images, texts, 20.0, objectives.same(labels))
    assert torch.allclose(ours, plain, atol=1e-6)
    assert torch.allclose(objectives.info_nce(images, texts, 20.0), plain, atol=1e-6)


def test_captions_of_one_picture_are_not_pushed_apart():
    # Two rows of one group with equal features: nothing is wrong, so nothing should move.
    x = torch.eye(3)[[0, 0, 1]].requires_grad_()
    loss = objectives.info_nce(x, x.detach(), 100.0, objectives.same(torch.tensor([0, 0, 1])))
    assert loss.item() == pytest.approx(2 / 3 * math.log(2), abs=1e-5)  # entropy of the target
    loss.backward()
    assert x.grad.abs().max() < 1e-5


def test_positives_by_any_key():
    found = objectives.same(torch.tensor([0, 0, 1]), torch.tensor([5, 6, 6]))
    assert found.tolist() == [[True, True, False], [True, True, True], [False, True, True]]


def test_sigmoid_loss_by_hand(features):
    images, texts = features
    cosines = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    expected = 0.0
    group = [0, 1, 1, 2, 3, 0]
    for i in range(6):
        for j in range(6):
            sign = 1 if group[i] == group[j] else -1
            expected -= F.logsigmoid(sign * (10 * cosines[i, j] - 5))
    ours = objectives.sigmoid_loss(images, texts, 10.0, -5.0, objectives.same(torch.tensor(group)))
    assert torch.allclose(ours, expected / 6, atol=1e-5)


def test_gather_is_the_tensor_itself_in_one_process(features):
    assert objectives.gather(features[0]) is features[0]


def test_a_preference_is_the_loss_of_a_choice_of_two():
    own, wrong = torch.tensor([0.2, 0.5, -0.1]), torch.tensor([0.1, 0.5, 0.3])
    both = torch.stack([own, wrong], 1) * 20
    wanted = F.cross_entropy(both, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(objectives.preference(own, wrong, 20.0), wanted)
    same = torch.tensor([0.3, -0.2])
    assert float(objectives.preference(same, same, 20.0)) == pytest.approx(0.6931472)
