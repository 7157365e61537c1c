"""APoLLo: counts, the adapters against a plain version, and none of the released code's defects."""

from __future__ import annotations

import pytest
import torch
from tests.adapting import features
from torch.nn import functional as F

from crossadapt.adapters.attach import activate, attach
from crossadapt.adapters.companion import pair_scores
from crossadapt.adapters.registry import make_config
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import load, tiny
from crossadapt.errors import UserError
from crossadapt.layers.cross_attention import SeparateAdapters, SharedAdapters
from crossadapt.methods.apollo import ApolloAdapters, ApolloConfig
from crossadapt.methods.maple import MaPLeConfig

E, H, B, C = 16, 64, 3, 5


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_and_derived_counts() -> None:
    vit = load("config:clip-vit-base-patch16", weights=False)
    assert summarise(vit, ApolloConfig()).trainable == 11_963_138
    assert summarise(vit, ApolloConfig(adapter="released")).trainable == 9_859_840
    assert summarise(vit, MaPLeConfig()).trainable == 3_555_072
    with torch.device("meta"):
        assert count(SeparateAdapters(512, 8, 2048, 0.1)) == 8_408_064 + 2
        assert count(SharedAdapters(512, 8, 2048, 0.1)) == 6_304_768
    assert count(SeparateAdapters(E, 2, H, 0.0)) == 8_800 + 2
    assert count(SharedAdapters(E, 2, H, 0.0)) == 6_560


def judge(adapter: str = "paper", eta: float = 0.5, **changes) -> ApolloAdapters:
    """The adapters with a visible effect, without dropout."""
    torch.manual_seed(0)
    config = ApolloConfig(adapter=adapter, dropout=0.0, **changes)
    module = ApolloAdapters(E, 2, config)
    if adapter == "paper":
        with torch.no_grad():
            for stream in (module.streams.image, module.streams.text):
                stream.eta.fill_(eta)
    return module


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, E, generator=generator), torch.randn(C, E, generator=generator)


def plain_score(module: ApolloAdapters, images, texts) -> torch.Tensor:
    """One picture at a time, as the figure has it: (1, 1, E) and (1, C, E) through each stream."""
    x, y = (F.normalize(f, dim=-1) * E**0.5 for f in (images, texts))

    def stream(part, own, other):
        x1 = part.norms[0](own + part.self_attention(own, own, own)[0])
        x2 = part.norms[1](x1 + part.cross_attention(x1, other, other)[0])
        x3 = part.norms[2](x2 + part.down(torch.relu(part.up(x2))))
        return own + part.eta * (x3 - own)

    rows = []
    for picture in x:
        one, all_texts = picture[None, None], y[None]
        image = stream(module.streams.image, one, all_texts)
        text = stream(module.streams.text, all_texts, one)
        rows.append(F.cosine_similarity(image, text, dim=-1)[0])
    return torch.stack(rows)


def test_scores_equal_one_picture_at_a_time() -> None:
    module = judge()
    images, texts = data()
    torch.testing.assert_close(module.score(images, texts), plain_score(module, images, texts))
    # The rows that the loss looks at are the diagonal of the same thing.
    adapted, shown = module.streams(images, texts[:B])
    one, own = module.streams.pairs(images, texts[:B])
    torch.testing.assert_close(one, adapted)
    torch.testing.assert_close(own, shown[torch.arange(B), torch.arange(B)])


def test_without_eta_outputs_are_inputs_and_scores_are_maples() -> None:
    module = judge(eta=0.0)
    images, texts = data()
    adapted, shown = module.streams(images, texts)
    assert torch.equal(adapted, images)
    assert torch.equal(shown, texts.expand(B, C, E))
    backbone = tiny("clip")
    attach(backbone, ApolloConfig())
    found = features(backbone)
    attach(backbone, MaPLeConfig(), name="maple")
    wanted = features(backbone)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
    activate(backbone, "default")
    backbone.eval()
    cosines = F.normalize(found[0], dim=-1) @ F.normalize(found[1], dim=-1).T
    with torch.no_grad():
        torch.testing.assert_close(pair_scores(backbone, *found), cosines)


def test_pictures_do_not_see_each_other_and_in_the_released_form_they_do() -> None:
    images, texts = data()
    others = images.clone()
    others[1:] = data(1)[0][1:]
    for form, independent in (("paper", True), ("released", False)):
        module = judge(form)
        a, b = module.score(images, texts)[0], module.score(others, texts)[0]
        assert torch.allclose(a, b, atol=1e-6) == independent


@pytest.mark.parametrize("form", ["paper", "released"])
def test_permuting_the_texts_permutes_the_scores(form) -> None:
    module, (images, texts) = judge(form), data()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        module.score(images, texts[order]), module.score(images, texts)[:, order]
    )


@pytest.mark.parametrize("form", ["paper", "released"])
def test_attention_gives_a_tensor_and_both_streams_the_right_shape(form) -> None:
    """The released layer adds the raw (output, weights) tuple of torch's attention."""
    adapted, shown = judge(form).streams(*data())
    assert adapted.shape == (B, E)
    assert shown.shape == ((B if form == "paper" else 1), C, E)


def test_attentions_are_separate_in_the_paper_s_form() -> None:
    stream = judge().streams.image
    assert stream.self_attention is not stream.cross_attention
    assert stream.self_attention.in_proj_weight is not stream.cross_attention.in_proj_weight
    shared = judge("released").streams.image
    assert [n for n, m in shared.named_modules() if type(m).__name__ == "MultiheadAttention"] == [
        "attention"
    ]


def test_half_precision_features_are_scored_in_float32() -> None:
    images, texts = data()
    found = judge().score(images.bfloat16(), texts.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, judge().score(images, texts), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 0},
        {"heads": 0},
        {"hidden": 0},
        {"depth": 0},
        {"adapter": "figure"},
        {"divergence": "kl"},
        {"dropout": 1.0},
        {"temperature": 0.0},
        {"image_weight": -1.0},
    ],
)
def test_impossible_options_are_errors(options) -> None:
    with pytest.raises(UserError):
        make_config("apollo", options)


def test_heads_divide_the_shared_space() -> None:
    with pytest.raises(UserError, match="5 heads do not divide the 12 channels"):
        attach(tiny("clip"), ApolloConfig(heads=5))
    adapter = attach(tiny("clip"), ApolloConfig())
    assert adapter.companion.streams.image.self_attention.num_heads == 6
