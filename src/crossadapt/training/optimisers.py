"""AdamW, SGD, the BertAdam of CLIP4Clip's recipe, and the schedules they follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from crossadapt.training.config import Recipe

_WARMUP_RATE = 1e-5


class BertAdam(Optimizer):
    """Adam without bias correction and with decoupled weight decay.

    `m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g^2`, `p -= lr (m / (sqrt(v) + eps) + decay p)`.
    Without the correction the first steps are larger than Adam's by `(1-b1)/sqrt(1-b2)`; the
    warm-up of the published recipes counts on it. Clipping is left to the loop.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            grads: list[Tensor] = [p.grad for p in params]
            first = [self.state[p]["exp_avg"] for p in params]
            second = [self.state[p]["exp_avg_sq"] for p in params]
            b1, b2 = group["betas"]
            torch._foreach_lerp_(first, grads, 1 - b1)
            torch._foreach_mul_(second, b2)
            torch._foreach_addcmul_(second, grads, grads, 1 - b2)
            scale = torch._foreach_sqrt(second)
            torch._foreach_add_(scale, group["eps"])
            update = torch._foreach_div(first, scale)
            if group["weight_decay"]:
                torch._foreach_add_(update, params, alpha=group["weight_decay"])
            torch._foreach_add_(params, update, alpha=-group["lr"])
        return loss


def make_optimiser(
    trained: Mapping[str, Parameter], recipe: Recipe, lr_scales: Mapping[str, float] | None = None
) -> Optimizer:
    """Two groups: matrices are decayed; biases, gains and scalars (at most one axis) are not.

    Tensors named in `lr_scales` form groups of their own, whose learning rate is that share of the
    others'.
    """
    scales = lr_scales or {}
    sorted_in: dict[tuple[bool, float], list[Parameter]] = {}
    for scale in dict.fromkeys([1.0, *scales.values()]):
        sorted_in |= {(True, scale): [], (False, scale): []}
    for name, p in trained.items():
        sorted_in[p.ndim > 1, scales.get(name, 1.0)].append(p)
    groups = [
        {
            "params": tensors,
            "weight_decay": recipe.weight_decay if matrices else 0.0,
            "lr": scale * recipe.lr,
            "lr_scale": scale,
        }
        for (matrices, scale), tensors in sorted_in.items()
        if tensors
    ]
    if recipe.optimiser == "bert-adam":
        return BertAdam(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.betas[0])
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def multiplier(step: int, total: int, warmup: float) -> float:
    """Factor on the learning rate at a step, counted from 0.

    Linear from 0 over the first `warmup` share of the steps, then `(1 + cos(pi x)) / 2` of the
    share x of *all* steps done, as CLIP4Clip has it: the factor falls from 1 to 0.9755 where a
    warm-up of 0.1 ends, and reaches 0 at the end.
    """
    x = step / total
    return x / warmup if x < warmup else 0.5 * (1 + math.cos(math.pi * x))


def learning_rate(recipe: Recipe, step: int, per_epoch: int) -> float:
    """The learning rate of a step, counted from 0, in a run of ``recipe.epochs`` epochs.

    By epochs e = 0, 1, …, E - 1: 1e-5, then ``lr (1 + cos(pi (e - 1) / E)) / 2``. The cosine of the
    released CoOp and MaPLe code starts behind the warm-up epoch but spans all E, so it does not
    reach 0.
    """
    if recipe.schedule == "steps":
        return recipe.lr * multiplier(step, per_epoch * recipe.epochs, recipe.warmup)
    epoch = step // per_epoch
    if epoch == 0:
        return _WARMUP_RATE
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / recipe.epochs))


def set_learning_rate(optimiser: Optimizer, lr: float) -> None:
    """Give every group this learning rate, or the group's share of it."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
