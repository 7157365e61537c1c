import numpy as np
import pytest
import torch
from tests import small_run
from torch.nn import functional as F

from crossadapt import backbones
from crossadapt.backbones.precision import choose_precision
from crossadapt.errors import UserError
from crossadapt.tasks.encode import encode_images, encode_texts

FP32 = choose_precision("fp32")
TEXTS = ["a red door", "a", "two green birds on a blue boat by the house", "white flower", "a"]


def test_images_equal_one_at_a_time():
    backbone, pixels = backbones.tiny("clip"), small_run.pixels(5)
    features = encode_images(backbone, pixels, batch_size=2, precision=FP32)
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=1), torch.ones(5), atol=1e-6)
    for row, picture in zip(features, pixels, strict=True):
        one = backbone.preprocess.normalise(torch.from_numpy(picture[None]))
        assert torch.allclose(row, F.normalize(backbone.encode_image(one), dim=-1)[0], atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_texts_keep_their_order_and_their_features(family):
    backbone = backbones.tiny(family)
    features = encode_texts(backbone, TEXTS, batch_size=2, precision=FP32)
    for row, text in zip(features, TEXTS, strict=True):
        tokens = backbone.tokenize([text])
        one = F.normalize(backbone.encode_text(tokens.ids, tokens.mask), dim=-1)[0]
        assert torch.allclose(row, one, atol=1e-5)
    tokenised = encode_texts(backbone, backbone.tokenize(TEXTS), precision=FP32)
    assert torch.allclose(features, tokenised, atol=1e-5)


def test_features_can_take_part_in_training():
    features = encode_texts(backbones.tiny("clip"), TEXTS, precision=FP32)
    weight = torch.ones(features.shape[1], requires_grad=True)
    (features * weight).sum().backward()
    assert weight.grad is not None


def test_dropout_is_off_while_encoding_and_on_again_after():
    backbone, _ = small_run.prepare(dropout=0.5)
    backbone.adapters.train()
    first, second = (encode_texts(backbone, TEXTS, precision=FP32) for _ in range(2))
    assert torch.equal(first, second)
    assert backbone.adapters.training


def test_nothing_to_encode_is_an_error():
    backbone = backbones.tiny("clip")
    with pytest.raises(UserError, match="no pictures"):
        encode_images(backbone, np.zeros((0, 3, 32, 32), np.uint8))
    with pytest.raises(UserError, match="no texts"):
        encode_texts(backbone, [])
