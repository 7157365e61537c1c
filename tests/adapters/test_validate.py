from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tests.adapting import CMA, WEIGHT, Scale, features, hooks, same, site, snapshot
from torch import nn

from crossadapt.adapters.attach import (
    active,
    attach,
)
from crossadapt.adapters.plan import Insertion, Override, Shadow
from crossadapt.backbones import tiny
from crossadapt.errors import UserError
from crossadapt.methods.full import FullConfig


def broken_plans(backbone):
    """Every way a plan can be wrong, each after a good item."""
    mlp, attention = site(backbone, "vision.0.mlp"), site(backbone, "vision.0.attention")
    good = Insertion(attention, Scale())
    nan = Scale(float("nan"))
    own = next(backbone.model.parameters())
    return {
        "is empty": [],
        "is empty ": None,
        "inserts at 'vision.9.mlp'": [good, Insertion(replace(mlp, name="vision.9.mlp"), Scale())],
        "inserts at 'vision.0.mlp'": [good, Insertion(replace(mlp, width=7), Scale())],
        "does not accept 24 channels": [good, Insertion(mlp, nn.Linear(16, 16))],
        r"into \(1, 2, 16\)": [good, Insertion(mlp, nn.Linear(24, 16))],
        "uses vision.0.attention twice": [good, good],
        "not finite": [good, Insertion(mlp, nan)],
        "inserts a str": [good, Insertion(mlp, "module")],
        "no parameter of the model": [good, Override("text_model.final_layer_norm.wight")],
        f"uses {WEIGHT} twice": [Override(WEIGHT), Override(WEIGHT)],
        "contains a int": [good, 3],
        "other items beside a Shadow": [
            good,
            Shadow(copy.deepcopy, lambda m: {}, lambda m, s: None),
        ],
        "trains nothing": [Insertion(mlp, nn.Identity())],
        "trains nothing ": [Shadow(copy.deepcopy, lambda m: {}, lambda m, s: None)],
        "belongs to the frozen backbone": [
            Shadow(lambda m: m, lambda m: {"own": own.requires_grad_(True)}, lambda m, s: None)
        ],
    }


@pytest.mark.parametrize("reason", broken_plans(tiny("clip")))
def test_broken_plan_changes_nothing(backbone, free, reason: str) -> None:
    attach(backbone, CMA, name="kept")
    before, outputs, count = snapshot(backbone), features(backbone), hooks(backbone)
    modules = [n for n, _ in backbone.named_modules()]
    with pytest.raises(UserError, match=reason.strip()):
        attach(backbone, free(broken_plans(backbone)[reason]))
    backbone.model.requires_grad_(False)  # the last case switches it on by itself
    assert same(snapshot(backbone), before)
    assert same(features(backbone), outputs)
    assert hooks(backbone) == count
    assert [n for n, _ in backbone.named_modules()] == modules
    assert active(backbone).name == "kept"


def test_non_finite_backbone_weight_cannot_be_copied(backbone) -> None:
    with torch.no_grad():
        dict(backbone.model.named_parameters())[WEIGHT][0] = float("inf")
    with pytest.raises(UserError, match=f"not finite(.|\n)*{WEIGHT}"):
        attach(backbone, FullConfig())
