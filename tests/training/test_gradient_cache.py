import pytest
import torch
from tests import small_run

from crossadapt.training import gradient_cache


def gradients(chunk, *, plain: bool, dropout: float):
    """Loss and all gradients; `plain` keeps one graph over the same chunks."""
    backbone, task = small_run.prepare(dropout=dropout, batch_size=7)
    backbone.adapters.train()
    trained = backbone.adapters["default"].trained()
    scale = torch.nn.Parameter(backbone.logit_scale.detach().clone())
    batch = task.collate(next(task.batches(0, 0)))

    def encode(stream, inputs):
        return task.encode(backbone, stream, inputs)

    def loss(features):
        value, parts = task.loss(features, batch, backbone)
        return value * scale.exp() / backbone.logit_scale.exp(), parts

    torch.manual_seed(3)
    if plain:
        features = {
            name: torch.cat([encode(name, piece) for piece in
                             zip(*(x.split(chunk) for x in inputs), strict=True)])
            for name, inputs in batch.inputs.items()
        }  # fmt: skip
        value = loss(features)[0]
        value.backward()
        value = float(value.detach())
    else:
        value, _ = gradient_cache.backward(encode, loss, batch.inputs, chunk)
    after = torch.rand(1)
    return value, {**{k: p.grad for k, p in trained.items()}, "scale": scale.grad}, after


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_equals_the_plain_loss_in_value_and_every_gradient(chunk, dropout):
    plain, wanted, _ = gradients(chunk, plain=True, dropout=dropout)
    cached, found, _ = gradients(chunk, plain=False, dropout=dropout)
    assert cached == pytest.approx(plain, abs=1e-6)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
        assert torch.allclose(found[name], gradient, atol=1e-6, rtol=1e-4), name


def test_the_generator_ends_where_the_plain_loss_leaves_it():
    assert torch.equal(
        gradients(3, plain=True, dropout=0.5)[2], gradients(3, plain=False, dropout=0.5)[2]
    )


def test_chunks_do_not_change_the_loss_without_randomness():
    whole, wanted, _ = gradients(None, plain=False, dropout=0.0)
    parts, found, _ = gradients(2, plain=False, dropout=0.0)
    assert parts == pytest.approx(whole, abs=1e-6)
    assert all(torch.allclose(found[n], wanted[n], atol=1e-6, rtol=1e-4) for n in wanted)
