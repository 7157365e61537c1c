"""What training never does: products for gradients of frozen weights, optimiser state for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.adapting import batch, loss, small, train
from tests.methods.test_behaviour import METHODS, backbones_of, config_of
from torch.utils._python_dispatch import TorchDispatchMode

from crossadapt import CrossModalAdapterConfig
from crossadapt.adapters.attach import attach
from crossadapt.backbones.lean import keep_less_for_backward
from crossadapt.training.config import Recipe
from crossadapt.training.optimisers import make_optimiser

PRODUCTS = {"aten.addmm.default", "aten.mm.default"}


def leaves(value: torch.Tensor) -> set[int]:
    """Ids of the tensors into which a backward pass from `value` would write a gradient."""
    found, seen, waiting = set(), set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [function for function, _ in node.next_functions]
    return found


class Products(TorchDispatchMode):
    """Counts matrix products of two matrices, which all products with a weight are."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func) in PRODUCTS
        return func(*args, **(kwargs or {}))


@contextmanager
def products() -> Iterator[Counter]:
    """Filled with their number on leaving."""
    found = Counter()
    with Products() as mode:
        yield found
    found["products"] = mode.count


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimiser", ["bert-adam", "adamw", "sgd"])
def test_only_trained_tensors_are_in_the_graph_and_in_the_optimiser(method, optimiser):
    family = backbones_of(method)[0].partition("-")[0]
    backbone = small(family)
    keep_less_for_backward(backbone)
    adapter = attach(backbone, config_of(method))
    train(backbone, adapter)
    trained = adapter.trained()
    wanted = {id(p) for p in trained.values()}
    value = loss(backbone)
    assert leaves(value) == wanted
    value.backward()
    frozen = [p for p in backbone.model.parameters() if id(p) not in wanted]
    assert frozen
    assert not any(p.requires_grad or p.grad is not None for p in frozen)
    updates = make_optimiser(trained, Recipe(optimiser=optimiser))
    updates.step()
    assert {id(p) for p in updates.state} <= wanted
    assert {id(p) for group in updates.param_groups for p in group["params"]} == wanted
    held = sum(x.numel() for state in updates.state.values() for x in state.values())
    assert 0 < held <= 2 * adapter.count() + len(trained)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_products_of_a_step_with_the_cross_modal_adapter(tower):
    """By counting: an adapter is two products, and its site gives back one for each frozen weight.

    A layer has four products around its attention and two in its MLP. Going back, each frozen
    weight takes one product (for its input) instead of two, each adapter weight two, and below the
    lowest adapter there is nothing: the first attention, and its queries, keys and values.
    """
    frozen, adapted = small("clip"), small("clip")
    adapter = attach(adapted, CrossModalAdapterConfig(r=4, d_s=6))
    pixels, tokens = batch(frozen)
    layers = frozen.depth(tower)

    def encode(backbone):
        if tower == "vision":
            return backbone.encode_image(pixels)
        return backbone.encode_text(tokens.ids, tokens.mask)

    with products() as plain, torch.no_grad():
        encode(frozen)
    with products() as forward:
        features = encode(adapted)
    with products() as back:
        features.sum().backward()
    assert plain["products"] == 6 * layers + 1
    assert forward["products"] == plain["products"] + 2 * 2 * layers
    # Two for each weight of an adapter, but the first adapter's input needs no gradient.
    adapters = 2 * 2 * 2 * layers - 1
    assert back["products"] == plain["products"] - 4 + adapters
    assert all(p.grad is None for p in adapted.model.parameters())
    assert any(p.grad is not None for p in adapter.trained().values())
