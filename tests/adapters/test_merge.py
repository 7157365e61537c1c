from __future__ import annotations

import pytest
import torch
from tests.adapting import features, hooks, train

from crossadapt.adapters.attach import attach, set_strength
from crossadapt.adapters.merge import merge
from crossadapt.backbones import tiny
from crossadapt.errors import UserError
from crossadapt.methods.cross_modal_adapter import CrossModalAdapterConfig
from crossadapt.methods.full import FullConfig


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_merged_backbone_encodes_as_the_adapter_did(family: str, strength: float) -> None:
    backbone = tiny(family)
    before = backbone.fingerprint
    train(backbone, attach(backbone, FullConfig(scope="all")))
    set_strength(backbone, strength)
    expected, scale = features(backbone), backbone.logit_scale.detach().clone()
    merge(backbone)
    # Not bit for bit: SigLIP's pooling head takes another kernel when its weights need gradients.
    torch.testing.assert_close(features(backbone), expected, rtol=1e-5, atol=1e-5)
    assert float(backbone.model.logit_scale) == float(scale)
    assert len(backbone.adapters) == 0
    assert hooks(backbone) == hooks(tiny(family))
    assert not any(p.requires_grad for p in backbone.parameters())
    assert backbone.fingerprint != before


def test_other_adapters_forbid_merging() -> None:
    backbone = tiny("clip")
    attach(backbone, CrossModalAdapterConfig(r=4, d_s=6), name="other")
    attach(backbone, FullConfig())
    with pytest.raises(UserError, match="other adapters were trained on"):
        merge(backbone)
    assert list(backbone.adapters) == ["other", "default"]
