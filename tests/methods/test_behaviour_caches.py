"""What every method that is built from labelled examples must do, on both families."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from tests.adapting import features, hooks, same, snapshot

from crossadapt.adapters.attach import activate, active, attach, detach, frozen, set_strength
from crossadapt.adapters.classifier import Support, class_companion, class_logits
from crossadapt.adapters.folder import load_adapter, save_adapter
from crossadapt.adapters.registry import get_method, make_config, method_names
from crossadapt.adapters.summary import summarise
from crossadapt.backbones import tiny
from crossadapt.errors import UserError
from crossadapt.tasks.retrieval import RetrievalTask
from crossadapt.training.updates import refuse_idle_parts

METHODS = [name for name in method_names() if get_method(name).few_shot]
OPTIONS = {"classes": ["cat", "dog", "red door"], "shots": 2}


@pytest.fixture(params=[(m, f) for m in METHODS for f in ("clip", "siglip")], ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def method(case):
    return case[0]


@pytest.fixture
def backbone(case):
    return tiny(case[1], seed=1)


def unit(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def built(backbone, method: str, name: str = "default", seed: int = 0):
    """An attached cache with examples in it."""
    adapter = attach(backbone, make_config(method, OPTIONS), name=name, seed=seed)
    width = backbone.embedding_dim
    adapter.companion.build(Support(unit(6, width, seed=seed + 1), unit(3, width, seed=seed + 2)))
    return adapter


def logits(backbone) -> torch.Tensor:
    images = unit(4, backbone.embedding_dim, seed=7)
    judge = class_companion(backbone)
    return class_logits(judge, images, active(backbone).strength)


def learn(backbone, adapter, steps: int = 5) -> list[float]:
    images, labels = unit(4, backbone.embedding_dim, seed=7), torch.tensor([0, 1, 2, 0])
    optimiser = torch.optim.Adam(list(adapter.trained().values()), lr=0.005)
    # Against zero-shot logits of random features the cache needs weight; the loss of samples that
    # are not weighed is what is compared, since weights change from step to step.
    adapter.companion.set_sharpness(20.0, 1.0)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss, _ = adapter.companion.loss(images, labels)
        loss.backward()
        optimiser.step()
        plain = torch.nn.functional.cross_entropy(adapter.companion.logits(images), labels)
        losses.append(plain.item())
    return losses


def test_the_backbone_and_its_features_stay_bit_identical(method, backbone) -> None:
    before, outputs, count = snapshot(backbone), features(backbone), hooks(backbone)
    adapter = built(backbone, method)
    if adapter.trained():
        learn(backbone, adapter)
    assert same(features(backbone), outputs)
    assert same(snapshot(backbone), before)
    assert hooks(backbone) == count
    assert all(p.grad is None for p in backbone.model.parameters())
    detach(backbone)
    assert class_companion(backbone) is None
    assert not any(p.requires_grad for p in backbone.parameters())


def test_every_trained_tensor_gets_a_gradient_and_training_lowers_the_loss(
    method, backbone
) -> None:
    adapter = built(backbone, method)
    if not adapter.trained():
        assert adapter.count() == 0
        return
    losses = learn(backbone, adapter)
    assert losses[-1] < losses[0]
    assert [n for n, p in adapter.named_trained() if p.grad is None or not p.grad.any()] == []


def test_counted_once_and_without_weights(method, backbone) -> None:
    adapter = built(backbone, method)
    empty = tiny(backbone.family, weights=False)
    config = make_config(method, OPTIONS)
    assert summarise(backbone, config).trainable == adapter.count()
    assert summarise(empty, config).trainable == adapter.count()
    assert summarise(empty, make_config(method)).trainable <= adapter.count()


def test_save_and_load_give_equal_logits(method, backbone, tmp_path) -> None:
    adapter = built(backbone, method)
    if adapter.trained():
        learn(backbone, adapter)
    adapter.companion.set_sharpness(0.7, 3.1)
    expected = logits(backbone)
    kept = {name: x.clone() for name, x in adapter.kept().items()}
    save_adapter(backbone, "default", tmp_path / "a")
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == sorted([*adapter.trained(), *kept])
    detach(backbone)
    again = load_adapter(backbone, tmp_path / "a", name="again")
    assert torch.equal(logits(backbone), expected)
    assert same(again.kept(), kept)
    assert again.companion.classes == ("cat", "dog", "red door")
    assert not again.training


def test_a_tensor_that_is_missing_or_of_another_backbone_is_refused(
    method, backbone, tmp_path
) -> None:
    built(backbone, method)
    save_adapter(backbone, "default", tmp_path / "a")
    with pytest.raises(UserError, match="another backbone"):
        load_adapter(tiny(backbone.family, seed=2), tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace('"shots": 2', '"shots": 3'))
    with pytest.raises(UserError, match="do not belong together"):
        load_adapter(backbone, tmp_path / "a", name="b")


def test_strength_and_switching(method, backbone) -> None:
    built(backbone, method, "first")
    one = logits(backbone)
    plain = class_companion(backbone).zero_shot(unit(4, backbone.embedding_dim, seed=7))
    set_strength(backbone, 0)
    assert torch.equal(logits(backbone), plain.detach())
    set_strength(backbone, 0.5)
    torch.testing.assert_close(logits(backbone), (plain + 0.5 * (one - plain)).detach())
    set_strength(backbone, 1)
    built(backbone, method, "second", seed=5)
    two = logits(backbone)
    assert not torch.equal(one, two)
    activate(backbone, "first")
    assert torch.equal(logits(backbone), one)
    with frozen(backbone):
        assert class_companion(backbone) is None


def test_without_classes_it_cannot_be_attached(method, backbone) -> None:
    with pytest.raises(UserError, match="no classes yet"):
        attach(backbone, make_config(method))
    assert len(backbone.adapters) == 0


def test_a_task_without_classes_is_refused(method, backbone) -> None:
    built(backbone, method)

    class Retrieval:
        name, calls_companion = RetrievalTask.name, RetrievalTask.calls_companion

    with pytest.raises(UserError, match="has no classes"):
        refuse_idle_parts(backbone, Retrieval())
