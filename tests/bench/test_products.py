"""The counts behind the floor and the bounds of the training bench, by hand."""

import pytest

from bench import _products as products


def test_multiplications_of_a_step():
    """A layer of width d has 12 d^2 weights; the lowest adapted layer goes back through 8 d^2."""
    tower = products.Tower(tokens=5, width=10)
    count = products.multiplications
    assert count(tower.layer()) == 5 * 12 * 10**2
    layer = 5 * 1200
    assert count(products.step(tower, 12)) == layer * (12 + 11) + 5 * 800
    assert count(products.step(tower, 4)) == layer * (12 + 3) + 5 * 800
    assert count(products.step(tower, 4, cached=True)) == layer * (4 + 3) + 5 * 800
    embedded = products.step(products.VISION, 4)
    assert count(embedded) - count(products.step(products.Tower(50, 768), 4)) == 49 * 3072 * 768


def test_bounds():
    text = products.Tower(15, 512)
    # (12 + 3 2/3) / (4 + 3 2/3), and the patches, a third of a layer.
    assert products.most_from_prefix(text, 4) == pytest.approx(2.08, abs=0.01)
    # Three to two, and 77 tokens to 15 in the smaller tower.
    assert products.most_from_less_work(text, products.Tower(77, 512)) == pytest.approx(
        2.27, abs=0.01
    )
    assert products.pace(products.Tower(2, 8), 1, "fp32", rounds=1) > 0
