import pytest
import torch

from crossadapt.layers.token_drop import drop_tokens


@pytest.mark.parametrize(("share", "kept"), [(0.0, 16), (0.5, 8), (0.7, 5), (0.99, 1)])
def test_keeps_the_class_token_and_a_subset_in_order(share, kept):
    torch.manual_seed(0)
    tokens = torch.arange(17.0).expand(4, 17)[..., None].repeat(1, 1, 3)
    out = drop_tokens(tokens, share)
    assert out.shape == (4, 1 + kept, 3)
    index = out[..., 0]
    assert (index[:, 0] == 0).all()
    assert (index.diff(dim=1) > 0).all()


def test_each_picture_loses_other_tokens():
    torch.manual_seed(0)
    tokens = torch.arange(65.0).expand(8, 65)[..., None]
    kept = drop_tokens(tokens, 0.5)[..., 0]
    assert len(torch.unique(kept, dim=0)) == 8


def test_pictures_of_one_clip_lose_the_same_places():
    torch.manual_seed(0)
    tokens = torch.arange(65.0).expand(6, 65)[..., None]
    kept = drop_tokens(tokens, 0.5, together=torch.tensor([0, 0, 1, 2, 2, 0]))[..., 0]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[5])
    assert torch.equal(kept[3], kept[4])
    assert len(torch.unique(kept, dim=0)) == 3


def test_gradients_reach_the_kept_tokens_only():
    torch.manual_seed(0)
    tokens = torch.randn(2, 9, 4, requires_grad=True)
    drop_tokens(tokens, 0.5).sum().backward()
    touched = (tokens.grad != 0).all(-1).sum(1)
    assert touched.tolist() == [5, 5]


def test_without_a_class_token_every_token_may_go():
    torch.manual_seed(0)
    tokens = torch.arange(16.0).expand(64, 16)[..., None]
    kept = drop_tokens(tokens, 0.5, prefix=0)[..., 0]
    assert kept.shape == (64, 8)
    assert 0 < (kept[:, 0] != 0).sum() < 64
