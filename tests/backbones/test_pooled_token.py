"""The last MLP runs for the pooled token only, wherever nothing reads the others."""

from __future__ import annotations

import threading

import pytest
import torch
from tests.adapting import CMA, Scale, attach_prompts, features, loss, same, site, small, train

from crossadapt.adapters.adapter import AttachedAdapter
from crossadapt.adapters.attach import activate, attach, detach, install
from crossadapt.adapters.mixture import mixed
from crossadapt.adapters.plan import Insertion
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import pooled_token

TOWERS = [("clip", "vision"), ("clip", "text"), ("siglip", "text")]


def seen(backbone, tower: str) -> int:
    """How many tokens of an input the last MLP of a tower meets."""
    widths: list[int] = []

    def look(module, inputs, output) -> None:
        widths.append(output.shape[1])

    look.by_token = True
    block = backbone.model.get_submodule(f"{tower}_model").encoder.layers[-1]
    handle = block.mlp.register_forward_hook(look)
    try:
        features(backbone)
    finally:
        handle.remove()
    return widths[0]


@pytest.fixture
def whole(monkeypatch):
    """A function that runs another with all tokens computed."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(pooled_token, "_unread", lambda tower, block: False)
            return function()

    return run


def put(backbone, where: str, module, *, parallel: bool = False) -> AttachedAdapter:
    plan = [Insertion(site(backbone, where), module, parallel)]
    adapter = AttachedAdapter(backbone, plan, name="default", method="test", config=None, seed=0)
    return install(backbone, adapter)


@pytest.mark.parametrize(("family", "tower"), TOWERS)
def test_a_frozen_tower_computes_one_token(family, tower, whole) -> None:
    backbone = small(family)
    assert seen(backbone, tower) == 1
    assert whole(lambda: seen(backbone, tower)) > 1
    for ours, plain in zip(features(backbone), whole(lambda: features(backbone)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_pictures_that_are_pooled_over_all_patches_need_all() -> None:
    assert seen(small("siglip"), "vision") > 1


def test_a_text_of_any_length_is_pooled_at_its_own_end(whole) -> None:
    backbone = small("clip")
    tokens = backbone.tokenize(["a", "a red door", "two green birds on a boat by the sea"])
    with torch.no_grad():
        ours = backbone.encode_text(tokens.ids, tokens.mask)
        plain = whole(lambda: backbone.encode_text(tokens.ids, tokens.mask))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours[0], ours[1])


def test_a_checkpoint_with_the_old_end_token_is_pooled_at_the_highest_id() -> None:
    backbone = small("clip")
    config = backbone.model.config.text_config
    tokens = backbone.tokenize(["a red door", "two green birds"])
    new = backbone.pooled_word(tokens.ids)
    config.eos_token_id = 2
    old = backbone.pooled_word(tokens.ids)
    assert old.tolist() == tokens.ids.argmax(-1).tolist()
    assert new.tolist() == (tokens.mask.sum(-1) - 1).tolist()


@pytest.mark.parametrize("kind", ["mlp", "block", "residual"])
def test_a_module_that_may_mix_tokens_is_given_all(kind) -> None:
    backbone = small("clip")
    depth = backbone.depth("vision")
    module = Scale()
    adapter = put(backbone, f"vision.{depth - 1}.{kind}", module, parallel=kind == "residual")
    assert seen(backbone, "vision") > 1
    assert seen(backbone, "text") == 1
    module.by_token = True
    assert seen(backbone, "vision") == 1
    del module.by_token
    adapter.strength = 0.0
    assert seen(backbone, "vision") == 1  # at rest, as the frozen model, bit for bit
    detach(backbone)
    put(backbone, f"vision.{depth - 2}.{kind}", module, parallel=kind == "residual")
    assert seen(backbone, "vision") == 1  # another layer is no matter


def test_a_mixture_is_as_wary_as_its_parts() -> None:
    backbone = small("clip")
    where = f"vision.{backbone.depth('vision') - 1}.mlp"
    plan = [Insertion(site(backbone, where), Scale())]
    mixer = AttachedAdapter(backbone, plan, name="scale", method="test", config=None, seed=0)
    adapter = attach(backbone, CMA)
    assert seen(backbone, "vision") == 1
    activate(backbone, None)
    with mixed(backbone, [adapter, None, adapter]):
        assert seen(backbone, "vision") == 1
    with mixed(backbone, [adapter, None, mixer]):
        assert seen(backbone, "vision") > 1


def test_whoever_looks_at_the_tower_sees_every_token(whole) -> None:
    backbone = small("clip")
    pixels = torch.randn(2, 3, *backbone.preprocess.size)
    with torch.no_grad():
        tokens = backbone.image_tokens(pixels).tokens
        assert same([tokens], [whole(lambda: backbone.image_tokens(pixels)).tokens])


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("", "forward"),
        ("encoder", "forward"),
        ("final_layer_norm", "forward"),
        ("encoder.layers.1", "full_backward"),
        ("encoder.layers.1.layer_norm2", "forward_pre"),
        ("encoder.layers.1.mlp.fc2", "forward"),
        ("encoder.layers.1.mlp.fc2", "full_backward"),
    ],
)
def test_a_hook_of_yours_sees_every_token(where, kind) -> None:
    backbone = small("clip", text_layers=2)
    module = backbone.model.text_model.get_submodule(where)
    handle = getattr(module, f"register_{kind}_hook")(lambda *_: None)
    assert seen(backbone, "text") > 1
    assert seen(backbone, "vision") == 1
    handle.remove()
    assert seen(backbone, "text") == 1


def test_prompts_after_the_patches_leave_the_class_token_where_it_is(whole) -> None:
    backbone = small("clip")
    attach_prompts(backbone, "vision", 3, 2)
    assert seen(backbone, "vision") == 1
    for ours, plain in zip(features(backbone), whole(lambda: features(backbone)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_whole_layer(whole) -> None:
    backbone = small("clip")
    adapter = attach(backbone, make_config("full", None))
    train(backbone, adapter)

    def gradients():
        backbone.zero_grad()
        loss(backbone).backward()
        return {name: p.grad.clone() for name, p in adapter.named_trained()}

    ours, plain = gradients(), whole(gradients)
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)


def test_two_threads_pool_their_own_texts() -> None:
    backbone = small("clip")
    texts = [["a red door"], ["two green birds on a boat by the sea", "a"]]
    wanted, wrong = [], []
    with torch.no_grad():
        for some in texts:
            tokens = backbone.tokenize(some)
            wanted.append((tokens, backbone.encode_text(tokens.ids, tokens.mask)))

    def work(number: int) -> None:
        tokens, expected = wanted[number]
        with torch.no_grad():
            found = [backbone.encode_text(tokens.ids, tokens.mask) for _ in range(100)]
        wrong.extend(number for one in found if not torch.equal(one, expected))

    threads = [threading.Thread(target=work, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
