"""APoLLo in training: the whole loss, the frozen second views, and what is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import small_run
from tests.adapting import features, train
from torch.nn import functional as F

from crossadapt.adapters.attach import activate, attach, frozen, set_strength
from crossadapt.adapters.companion import companion, pair_scores
from crossadapt.adapters.registry import make_config
from crossadapt.backbones import tiny
from crossadapt.backbones.precision import choose_precision
from crossadapt.errors import UserError
from crossadapt.methods.apollo import ApolloConfig
from crossadapt.tasks.retrieval import RetrievalTask
from crossadapt.tasks.second_view import SUFFIX
from crossadapt.training import gradient_cache
from crossadapt.training.loop import fit


def prepare(captions: int = 1, method: str = "apollo", **options):
    """A tiny backbone, the adapter and a retrieval task over invented pictures."""
    backbone = tiny("clip")
    adapter = attach(backbone, make_config(method, {"dropout": 0.0, **options}))
    rows = small_run.manifest(captions=captions)
    task = RetrievalTask(
        backbone,
        rows,
        small_run.pixels(),
        validation=rows,
        validation_pixels=small_run.pixels(),
        batch_size=5,
        precision=choose_precision("fp32"),
    )
    return backbone, adapter, task


def run(backbone, task, batch=None):
    batch = task.collate(np.arange(5)) if batch is None else batch
    encoded = {n: task.encode(backbone, n, x) for n, x in batch.inputs.items()}
    return (*task.loss(encoded, batch, backbone), encoded)


def test_the_whole_loss_is_computed_and_named() -> None:
    """In the released code co2 is never evaluated and the sum falls back to cross-entropy."""
    backbone, _, task = prepare()
    total, parts, _ = run(backbone, task)
    assert set(parts) == {"pairs", "plain", "image_agreement", "text_agreement"}
    assert float(total.detach()) == pytest.approx(sum(parts.values()), rel=1e-5)
    for weight in ("image_weight", "text_weight", "plain_weight"):
        backbone, _, task = prepare(**{weight: 0.0})
        assert len(run(backbone, task)[1]) == 3


def test_weights_scale_their_terms() -> None:
    torch.manual_seed(0)
    _, once, _ = run(*prepare()[::2])
    torch.manual_seed(0)
    _, twice, _ = run(*prepare(image_weight=2.0)[::2])
    assert twice["image_agreement"] == pytest.approx(2 * once["image_agreement"], rel=1e-5)
    assert twice["text_agreement"] == pytest.approx(once["text_agreement"], rel=1e-5)


def test_second_views_go_through_the_frozen_model_without_prompts() -> None:
    backbone, adapter, task = prepare()
    train(backbone, adapter)
    batch = task.collate(np.arange(5))
    with frozen(backbone), torch.no_grad():
        wanted = task.encode(backbone, "image", batch.inputs[f"image{SUFFIX}"])
        texts = backbone.encode_text(*batch.inputs[f"text{SUFFIX}"])
    _, _, encoded = run(backbone, task, batch)
    assert torch.equal(encoded[f"image{SUFFIX}"], wanted)
    assert torch.equal(encoded[f"text{SUFFIX}"], texts)
    assert not encoded[f"image{SUFFIX}"].requires_grad
    assert adapter.active
    # The pictures of the second view are augmented: other numbers than the batch's own.
    assert not torch.equal(batch.inputs["image"][0], batch.inputs[f"image{SUFFIX}"][0])


def test_both_adapters_and_the_prompts_train_and_nothing_of_clip(tmp_path) -> None:
    """The released freeze loop leaves both adapters without gradients."""
    backbone, adapter, task = prepare()
    names = {n for n, p in backbone.named_parameters() if p.requires_grad}
    for part in ("streams.image.", "streams.text.", "prompts.text", "prompts.vision"):
        assert any(part in n for n in names), part
    assert not any(n.startswith("model.") for n in names)
    before = {n: p.detach().clone() for n, p in adapter.named_trained()}
    model = {n: p.clone() for n, p in backbone.model.named_parameters()}
    result = fit(
        backbone,
        task,
        small_run.recipe(epochs=1, lr=1e-2, guard=0, warmup=0.0, weight_decay=0.0),
        output=tmp_path,
        precision=choose_precision("fp32"),
        quiet=True,
    )
    still = [n for n, p in adapter.named_trained() if torch.equal(p, before[n])]
    assert still == []
    assert all(torch.equal(p, model[n]) for n, p in backbone.model.named_parameters())
    assert {"rsum", "pair_rsum"} <= set(result.best)


def gradients(chunk: int | None):
    backbone, adapter, task = prepare()
    with torch.no_grad():
        for stream in ("image", "text"):
            getattr(adapter.companion.streams, stream).eta.fill_(0.5)
    torch.manual_seed(1)
    batch = task.collate(np.arange(5))
    value, _ = gradient_cache.backward(
        lambda stream, inputs: task.encode(backbone, stream, inputs),
        lambda found: task.loss(found, batch, backbone),
        batch.inputs,
        chunk,
    )
    return value, {n: p.grad for n, p in adapter.named_trained()}


def test_the_gradient_cache_gives_the_same_loss_and_gradients() -> None:
    plain, wanted = gradients(None)
    cached, found = gradients(2)
    assert cached == pytest.approx(plain, abs=1e-5)
    assert all(g is not None for g in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_dial() -> None:
    backbone, adapter, _ = prepare()
    train(backbone, adapter, steps=3)
    images, texts = features(backbone)
    with torch.no_grad():
        full = pair_scores(backbone, images, texts, block=2)
        torch.testing.assert_close(full, pair_scores(backbone, images, texts, block=None))
        set_strength(backbone, 0)
        plain = pair_scores(backbone, images, texts)
        assert torch.equal(plain, F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T)
        set_strength(backbone, 0.25)
        torch.testing.assert_close(
            pair_scores(backbone, images, texts), plain + 0.25 * (full - plain)
        )
    assert not torch.allclose(full, plain, atol=1e-4)
    activate(backbone, None)
    assert companion(backbone) is None


def test_a_task_made_before_the_adapter_says_so() -> None:
    backbone, _, task = prepare(method="adaptformer")
    batch = task.collate(np.arange(5))
    attach(backbone, ApolloConfig(), name="late")
    with pytest.raises(UserError, match="needs second views"):
        run(backbone, task, batch)


def test_a_task_that_ignores_the_adapters_is_refused(tmp_path) -> None:
    backbone, _, task = prepare()
    task.calls_companion = False
    with pytest.raises(UserError, match="the task retrieval does not call"):
        fit(backbone, task, small_run.recipe(), output=tmp_path, quiet=True)
