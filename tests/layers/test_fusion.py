"""Frame weights and key factors of frame-aware attention, against closed forms."""

from __future__ import annotations

import threading

import pytest
import torch

from crossadapt.layers.fusion import frame_weights, fusing, is_fusing, key_factors


def test_weights_of_one_frame_and_of_equal_frames_are_one():
    texts = torch.randn(3, 5)
    assert torch.equal(frame_weights(texts, torch.randn(3, 1, 5)), torch.ones(3, 1))
    equal = torch.randn(3, 1, 5).expand(3, 4, 5)
    torch.testing.assert_close(frame_weights(texts, equal), torch.ones(3, 4))


def test_weights_against_the_formula_and_with_mean_one():
    texts = torch.tensor([[2.0, 0.0]])
    frames = torch.tensor([[[3.0, 0.0], [0.0, 5.0]]])
    cosines = torch.tensor([[1.0, 0.0]])
    expected = 2 * (cosines / 4).softmax(1)
    torch.testing.assert_close(frame_weights(texts, frames), expected)
    sharp = frame_weights(texts, frames, temperature=0.5)
    torch.testing.assert_close(sharp, 2 * (cosines / 0.5).softmax(1))
    many = frame_weights(torch.randn(4, 6), torch.randn(4, 7, 6))
    torch.testing.assert_close(many.mean(1), torch.ones(4))
    # With cosines in [-1, 1] and temperature 4 no weight leaves [exp(-1/2), exp(1/2)].
    assert float(many.min()) >= 0.6
    assert float(many.max()) <= 1.65


def test_missing_frames_weigh_nothing_and_the_mean_runs_over_the_others():
    texts, frames = torch.randn(2, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = frame_weights(texts, frames, mask)
    torch.testing.assert_close(found[0, :2], frame_weights(texts[:1], frames[:1, :2])[0])
    assert float(found[0, 2]) == 0


def test_weights_carry_no_gradient():
    texts = torch.randn(2, 5, requires_grad=True)
    assert not frame_weights(texts, torch.randn(2, 3, 5, requires_grad=True)).requires_grad


def test_class_tokens_keep_their_keys():
    weights = torch.tensor([[0.5, 1.5]])
    assert key_factors(weights, 3).tolist() == [[1.0, 0.5, 0.5, 1.0, 1.5, 1.5]]


def test_fusing_is_seen_by_its_own_thread_only():
    seen = []
    assert not is_fusing()
    with fusing():
        assert is_fusing()
        thread = threading.Thread(target=lambda: seen.append(is_fusing()))
        thread.start()
        thread.join()
    assert (seen, is_fusing()) == ([False], False)
    with pytest.raises(ValueError), fusing():
        raise ValueError
    assert not is_fusing()
