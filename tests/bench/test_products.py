"""The counts behind the floor and the bounds of the training bench, by hand."""

import pytest

from bench import _products as products


def test_multiplications_of_a_step():
    """A layer of width d has 4 d^2 weights in its attention and 8 d^2 in its MLP."""
    tower = products.Tower(tokens=5, width=10)
    count = products.multiplications
    assert count(tower.attention()) == 5 * 400
    assert count(tower.mlp(5)) == 5 * 800
    layer, last = 5 * 1200, 5 * 400 + 800  # the last layer's MLP is of one token
    assert count(products.step(tower, 12)) == (layer * 11 + last) * 2 - 5 * 400
    assert count(products.step(tower, 4)) == layer * (11 + 3) + last * 2 - 5 * 400
    assert count(products.step(tower, 4, cached=True)) == layer * (3 + 3) + last * 2 - 5 * 400
    assert count(products.step(tower, 1, cached=True)) == last + 800
    assert count(products.forward(tower)) == layer * 11 + last
    embedded = products.step(products.VISION, 4)
    assert count(embedded) - count(products.step(products.Tower(50, 768), 4)) == 49 * 3072 * 768


def test_bounds():
    text = products.Tower(15, 512)
    # (11 1/3 + 3) / (3 1/3 + 3), and the patches, a third of a layer.
    assert products.most_from_prefix(text, 4) == pytest.approx(2.30, abs=0.01)
    # Three to two, 77 tokens to 15 in the smaller tower, and one MLP of twelve.
    assert products.most_from_less_work(text, products.Tower(77, 512)) == pytest.approx(
        2.40, abs=0.01
    )
    assert products.pace(products.step(products.Tower(2, 8), 12), 1, "fp32", rounds=1) > 0
