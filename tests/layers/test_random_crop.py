"""Random crops: shape, what they keep, and that the generator's state replays them."""

from __future__ import annotations

import torch

from crossadapt.layers.random_crop import RandomCrop


def picture(count: int = 3) -> torch.Tensor:
    """A horizontal ramp: the value tells the column."""
    return torch.arange(32).mul(8).to(torch.uint8).expand(count, 3, 32, 32).contiguous()


def test_the_whole_picture_comes_back_unchanged() -> None:
    found = RandomCrop(area=(1.0, 1.0), aspect=1.0)(picture())
    assert found.dtype == torch.uint8
    assert torch.equal(found, picture())


def test_a_mirror_image() -> None:
    found = RandomCrop(area=(1.0, 1.0), aspect=1.0, flip=1.0)(picture())
    assert torch.equal(found, picture().flip(3))


def test_a_quarter_of_the_area_shows_half_the_columns() -> None:
    torch.manual_seed(0)
    found = RandomCrop(area=(0.25, 0.25), aspect=1.0)(picture(20)).float()
    shown = found.amax((1, 2, 3)) - found.amin((1, 2, 3))
    assert ((shown - 0.5 * 248).abs() <= 12).all()
    assert len(found[:, 0, 0, 0].unique()) > 5


def test_the_generator_s_state_replays_it() -> None:
    torch.manual_seed(1)
    one = RandomCrop()(picture())
    two = RandomCrop()(picture())
    torch.manual_seed(1)
    assert torch.equal(RandomCrop()(picture()), one)
    assert not torch.equal(one, two)
