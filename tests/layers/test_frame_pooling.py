"""Similarity heads against brute force, at their limits, and what must not matter to them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from crossadapt.errors import UserError
from crossadapt.layers.frame_pooling import (
    MeanPooling,
    TextConditionedPooling,
    make_pooling,
    mean_pooled,
)

HEADS = [MeanPooling(), TextConditionedPooling()]


def case(texts: int = 5, clips: int = 4, frames: int = 6, width: int = 8):
    """Texts (N, D), frames (M, F, D) of various lengths, and a mask with a gap in every clip."""
    random = torch.Generator().manual_seed(0)
    t = 3 * torch.randn(texts, width, generator=random)
    f = torch.randn(clips, frames, width, generator=random)
    f = f * (1 + torch.arange(frames)[None, :, None])
    mask = torch.ones(clips, frames, dtype=torch.bool)
    for clip in range(clips):
        mask[clip, (clip + 1) % frames :: 4] = False
    return t, f, mask


def brute_force(t, f, mask, temperature):
    """The paper's formula, one text and one clip at a time."""
    found = torch.zeros(len(t), len(f))
    for n in range(len(t)):
        for m in range(len(f)):
            kept = f[m][mask[m]]
            weights = torch.softmax(kept @ t[n] / temperature, 0)
            pooled = (weights[:, None] * kept).sum(0)
            found[n, m] = functional.cosine_similarity(t[n], pooled, dim=0)
    return found


@pytest.mark.parametrize("temperature", [0.1, 5.0, 100.0])
def test_text_conditioned_pooling_is_the_papers(temperature) -> None:
    t, f, mask = case()
    found = TextConditionedPooling(temperature)(t, f, mask)
    torch.testing.assert_close(found, brute_force(t, f, mask, temperature), rtol=1e-4, atol=1e-5)


def test_mean_pooling_scales_frames_before_and_the_mean_after() -> None:
    t, f, mask = case()
    for m in range(len(f)):
        kept = torch.stack([x / x.norm() for x in f[m][mask[m]]])
        mean = kept.mean(0)
        torch.testing.assert_close(mean_pooled(f, mask)[m], mean / mean.norm())
        wanted = functional.cosine_similarity(t, mean[None], dim=1)
        torch.testing.assert_close(MeanPooling()(t, f, mask)[:, m], wanted)


def test_temperature_near_zero_takes_the_best_frame() -> None:
    t, f, mask = case()
    found = TextConditionedPooling(1e-6)(t, f, mask)
    scores = torch.einsum("nd,mfd->nmf", t, f).masked_fill(~mask, -torch.inf)
    best = scores.argmax(-1)
    for n in range(len(t)):
        for m in range(len(f)):
            wanted = functional.cosine_similarity(t[n], f[m, best[n, m]], dim=0)
            torch.testing.assert_close(found[n, m], wanted, rtol=1e-4, atol=1e-5)


def test_large_temperature_is_the_mean_of_raw_frames_and_not_of_scaled_ones() -> None:
    t, f, mask = case()
    found = TextConditionedPooling(1e6)(t, f, mask)
    raw = torch.stack([clip[seen].mean(0) for clip, seen in zip(f, mask, strict=True)])
    wanted = functional.normalize(t, dim=1) @ functional.normalize(raw, dim=1).T
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert (found - MeanPooling()(t, f, mask)).abs().max() > 0.05


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_one_frame_is_plain_cosine(head) -> None:
    t, f, _ = case(frames=1)
    wanted = functional.normalize(t, dim=1) @ functional.normalize(f[:, 0], dim=1).T
    found = head(t, f, torch.ones(len(f), 1, dtype=torch.bool))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_masked_frames_and_the_order_of_frames_change_nothing(head) -> None:
    t, f, mask = case()
    wanted = head(t, f, mask)
    noise = torch.where(mask[..., None], f, 1e3 * torch.ones_like(f))
    torch.testing.assert_close(head(t, noise, mask), wanted)
    more = torch.cat([f, 7 * torch.ones(len(f), 3, f.shape[2])], 1)
    longer = torch.cat([mask, torch.zeros(len(f), 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(head(t, more, longer), wanted)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(head(t, f[:, order], mask[:, order]), wanted)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_a_clip_without_frames_scores_zero_with_finite_gradients(head) -> None:
    t, f, mask = case()
    mask[1] = False
    f.requires_grad_()
    found = head(t, f, mask)
    assert found[:, 1].abs().max() == 0
    assert found[:, [0, 2, 3]].abs().min() > 0
    found.square().sum().backward()
    assert bool(f.grad.isfinite().all())
    assert f.grad[1].abs().max() == 0


def test_blocks_give_the_values_and_gradients_of_one_piece() -> None:
    t, f, mask = case()
    results = []
    for block in (2**22, 30):  # 4 clips of 6 frames: 30 scores are one text at a time
        texts, frames = t.clone().requires_grad_(), f.clone().requires_grad_()
        found = TextConditionedPooling(5.0, block)(texts, frames, mask)
        found.square().sum().backward()
        results.append((found.detach(), texts.grad, frames.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match="text-conditioned"):
        make_pooling("text-condition")
    for bad in (0.0, -1.0, float("inf")):
        with pytest.raises(UserError, match="temperature"):
            make_pooling("text-conditioned", bad)
