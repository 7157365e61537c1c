from __future__ import annotations

import pytest
import torch
from tests.adapting import CMA, Scale, features, same, site, train

from crossadapt.adapters.attach import (
    activate,
    attach,
    frozen,
    set_strength,
)
from crossadapt.adapters.plan import Insertion, Override
from crossadapt.errors import UserError


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "1", None, True])
def test_strength_outside_its_range_is_an_error(backbone, value) -> None:
    adapter = attach(backbone, CMA)
    with pytest.raises(UserError, match=r"not in \[0, 1\]"):
        set_strength(backbone, value)
    assert adapter.strength == 1.0


def test_strength_formula_of_insertions(backbone, free) -> None:
    attention = site(backbone, "vision.1.mlp")
    module = backbone.model.get_submodule(attention.path)
    attach(backbone, free([Insertion(attention, Scale(3.0))]))
    x = torch.randn(1, 5, 24)
    set_strength(backbone, 0.25)
    out = module(x)
    with frozen(backbone):
        base = module(x)
    torch.testing.assert_close(out, base + 0.25 * (3.0 * base - base))


def test_strength_formula_of_overrides(backbone, free) -> None:
    adapter = attach(backbone, free([Override("logit_scale")]))
    start = float(backbone.model.logit_scale)
    with torch.no_grad():
        adapter.trained()["logit_scale"].fill_(start + 2.0)
    for value in (1.0, 0.25, 0.0):
        set_strength(backbone, value)
        assert float(backbone.logit_scale.detach()) == pytest.approx(start + 2.0 * value)
    assert float(backbone.model.logit_scale) == start


def test_strength_of_an_inactive_adapter_waits_for_it(backbone) -> None:
    train(backbone, attach(backbone, CMA, name="a"))
    one = features(backbone)
    attach(backbone, CMA, name="b", seed=1)
    two = features(backbone)
    set_strength(backbone, 0.0, "a")
    assert same(features(backbone), two)
    activate(backbone, "a")
    assert not same(features(backbone), one)
    set_strength(backbone, 1.0)
    assert same(features(backbone), one)
    activate(backbone, None)
    with pytest.raises(UserError, match="no adapter is active"):
        set_strength(backbone, 0.5)


def test_a_shadow_is_left_out_at_strength_zero(backbone) -> None:
    """A shadow's `set_strength` need not know 0: the frozen model itself runs then."""
    pytest.importorskip("peft")
    from crossadapt.adapters.registry import make_config

    attach(backbone, make_config("peft:lora"))
    assert backbone.shadow is not None
    set_strength(backbone, 0.0)
    assert backbone.shadow is None
    set_strength(backbone, 0.5)
    assert backbone.shadow is not None
