from __future__ import annotations

import torch
from torch import nn

from crossadapt.layers.norm_linear import NormLinear, masked_norm


def test_padding_does_not_count_in_the_norm() -> None:
    torch.manual_seed(0)
    norm, plain = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    x, mask = torch.randn(4, 5, 3), torch.rand(4, 5) > 0.4
    found = masked_norm(norm, x, mask)
    torch.testing.assert_close(found[mask], plain(x[mask]))
    assert (found[~mask] == 0).all()
    torch.testing.assert_close(norm.running_mean, plain.running_mean)


def test_statistics_are_written_only_while_gradients_are_recorded() -> None:
    torch.manual_seed(0)
    norm, x = nn.BatchNorm1d(3), torch.randn(6, 3)
    with torch.no_grad():
        quiet = masked_norm(norm, x)
    assert (norm.running_mean == 0).all()
    torch.testing.assert_close(quiet, masked_norm(norm, x).detach())
    assert (norm.running_mean != 0).any()
    norm.eval()
    before = norm.running_mean.clone()
    masked_norm(norm, x)
    assert torch.equal(norm.running_mean, before)


def test_where_the_dropout_stands() -> None:
    torch.manual_seed(0)
    x = torch.ones(500, 4)
    later = NormLinear(4, 3, 0.5, norm=False)
    with torch.no_grad():
        later.linear.weight.fill_(1.0)
        later.linear.bias.fill_(100.0)
    # In front of the layer: its bias always comes through.
    assert (later(x) >= 100).all()
    first = NormLinear(4, 3, 0.5, norm=True)
    assert 0.4 < float((first(torch.randn(500, 4)) == 0).float().mean()) < 0.6
