from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crossadapt.errors import UserError
from crossadapt.layers.matching import MatchingHead, draw_negatives, matching_loss
from crossadapt.layers.momentum import (
    NOBODY,
    MomentumQueue,
    average_into,
    same_keys,
    soft_targets,
)


def queue(size: int = 16, batch: int = 4) -> MomentumQueue:
    return MomentumQueue(size, batch, {"image": [8, 4], "text": [8, 4]}, 2, seed=0)


def test_the_copy_follows_parameters_and_running_statistics() -> None:
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow = copy.deepcopy(online)
    average_into(slow, online, 0.995)
    for a, b in zip(slow.state_dict().values(), online.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    before = {k: v.clone() for k, v in slow.state_dict().items()}
    online(torch.randn(6, 3) + 2)
    with torch.no_grad():
        online[0].weight.add_(1)
    average_into(slow, online, 0.995)
    for name in ("0.weight", "0.bias", "1.running_mean", "1.running_var"):
        new = online.state_dict()[name]
        expected = 0.995 * before[name] + 0.005 * new
        torch.testing.assert_close(slow.state_dict()[name], expected, msg=name)
    assert not torch.equal(slow[1].running_mean, before["1.running_mean"])
    # As released: parameters alone.
    kept = slow[1].running_mean.clone()
    average_into(slow, online, 0.5, buffers=False)
    assert torch.equal(slow[1].running_mean, kept)
    assert not any(p.grad is not None for p in slow.parameters())


def test_queue_wraps_and_keeps_keys_beside_their_rows() -> None:
    found = queue()
    assert (found.keys == NOBODY).all()
    for part in found.rows["image"].split([8, 4], 1):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(16))
    for step in range(5):
        rows = F.normalize(torch.full((4, 12), float(step + 1)), dim=1)
        found.add({"image": rows, "text": -rows}, torch.full((4, 2), step))
    assert int(found.pointer) == 4
    assert found.keys[:, 0].tolist() == [4] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert (found.rows["image"] == -found.rows["text"]).all()
    # A batch that is smaller than usual moves the pointer by its own size, over the end too.
    found.add({"image": rows[:3], "text": rows[:3]}, torch.full((3, 2), 9))
    assert found.keys[4:8, 0].tolist() == [9, 9, 9, 1]
    found.pointer.fill_(15)
    found.add({"image": rows[:2], "text": rows[:2]}, torch.full((2, 2), 7))
    assert (found.keys[15, 0], found.keys[0, 0], int(found.pointer)) == (7, 7, 1)


def test_state_is_written_in_place() -> None:
    found, other = queue(), queue()
    found.add({n: torch.ones(4, 12) for n in ("image", "text")}, torch.ones(4, 2).long())
    for name, tensor in other.state().items():
        tensor.copy_(found.state()[name])
    assert int(other.pointer) == 4
    assert torch.equal(other.rows["text"], found.rows["text"])
    assert torch.equal(other.keys, found.keys)


@pytest.mark.parametrize(("size", "batch"), [(16, 5), (4, 8)])
def test_a_queue_that_is_no_multiple_of_the_batch_is_refused(size: int, batch: int) -> None:
    with pytest.raises(UserError, match="cannot be filled") as error:
        queue(size, batch)
    fixed = int(str(error.value.fix).rsplit(" ", 1)[1])
    assert len(queue(fixed, batch)) == fixed


def test_keys() -> None:
    keys = torch.tensor([[0, 5], [1, 6], [2, 6]])
    same = same_keys(keys, torch.cat([keys, torch.full((2, 2), NOBODY)]))
    assert same.tolist() == [
        [True, False, False, False, False],
        [False, True, True, False, False],
        [False, True, True, False, False],
    ]


def test_targets() -> None:
    same = torch.tensor([[True, True, False, False], [False, True, False, False]])
    hard = soft_targets(same, None, 0.0)
    assert hard.tolist() == [[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    logits = torch.randn(2, 4)
    assert torch.equal(soft_targets(same, logits, 0.0), hard)
    mixed = soft_targets(same, logits, 0.4)
    torch.testing.assert_close(mixed.sum(1), torch.ones(2))
    torch.testing.assert_close(mixed, 0.4 * logits.softmax(1) + 0.6 * hard)


def test_near_misses_never_belong_to_the_row() -> None:
    torch.manual_seed(0)
    same = same_keys(torch.tensor([[0], [0], [1], [2]]), torch.tensor([[0], [0], [1], [2]]))
    # By far the most similar is always one that belongs to the row.
    similarity = 50.0 * same.float()
    for _ in range(200):
        rows, wrong = draw_negatives(similarity, same)
        assert rows.tolist() == [0, 1, 2, 3]
        assert not same[rows, wrong].any()


def test_likelier_the_more_similar() -> None:
    torch.manual_seed(0)
    similarity = torch.tensor([[0.0, 2.0, 0.0]]).repeat(4000, 1)
    same = torch.tensor([[True, False, False]]).repeat(4000, 1)
    _, wrong = draw_negatives(similarity, same)
    chance = similarity[0].softmax(0)
    share = float(chance[1] / (chance[1] + chance[2]))
    assert float((wrong == 1).float().mean()) == pytest.approx(share, abs=0.02)


def test_rows_without_any_negative_are_skipped_and_a_batch_of_them_has_no_loss() -> None:
    everything = torch.ones(3, 3, dtype=torch.bool)
    rows, wrong = draw_negatives(torch.zeros(3, 3), everything)
    assert len(rows) == len(wrong) == 0
    head, x = MatchingHead(4, 0.0), torch.randn(3, 4)
    scores = torch.zeros(3, 3)
    assert matching_loss(head, x, x, scores, scores, everything) is None
    some = everything.clone()
    some[1:, 0] = some[0, 1:] = False
    some[1, 2] = some[2, 1] = True
    assert matching_loss(head, x, x, scores, scores, some) is not None


@pytest.mark.parametrize("norm", [False, True])
def test_matching_head(norm: bool) -> None:
    torch.manual_seed(0)
    head = MatchingHead(6, 0.0, norm).eval()
    assert sum(p.numel() for p in head.parameters()) == 4 * 6 + 1 + 2 * norm
    u, v = torch.randn(5, 6), torch.randn(5, 6)
    with torch.no_grad():
        head.linear.weight[:, :12] = 0
    torch.testing.assert_close(head(u, v), head(v, u))
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.zero_()
    same = torch.eye(5, dtype=torch.bool)
    loss = matching_loss(head, u, v, u @ v.T, v @ u.T, same)
    assert float(loss.detach()) == pytest.approx(0.6931, abs=1e-4)


def test_matching_loss_counts_three_pairs_per_row(monkeypatch) -> None:
    head = MatchingHead(2, 0.0)
    seen = {}

    def forward(u, v):
        seen["pairs"] = torch.stack([u[:, 0], v[:, 0]], 1).tolist()
        return torch.zeros(len(u))

    monkeypatch.setattr(head, "forward", forward)
    u = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    same = torch.eye(2, dtype=torch.bool)
    matching_loss(head, u, u + 10, torch.zeros(2, 2), torch.zeros(2, 2), same)
    # Two true pairs; each picture with the other's text; each text with the other's picture.
    assert seen["pairs"] == [[0, 10], [1, 11], [0, 11], [1, 10], [1, 10], [0, 11]]
