"""How large a PEFT method must be to train about as many parameters as another method."""

from __future__ import annotations

from crossadapt.backbones.base import Backbone
from crossadapt.errors import UserError
from crossadapt.integrations.peft.configs import PeftDoraConfig, PeftLoraConfig
from crossadapt.integrations.peft.methods import peft_method, target_layers


def rank_for_budget(
    backbone: Backbone,
    method: str,
    budget: int,
    *,
    config: PeftLoraConfig | PeftDoraConfig | None = None,
) -> int:
    """The rank r >= 1 at which `method` trains nearest to `budget` parameters.

    Args:
        backbone: any crossadapt backbone.
        method: ``peft:lora`` or ``peft:dora`` (the prefix may be left out).
        budget: number of trained parameters to match, 1 or more; of two ranks equally near, the
            lower is taken.
        config: layers and towers to adapt; by default those of the method's default config.

    Raises:
        UserError: the method has no rank that sets its size, or the budget is below 1.
    """
    name = method.removeprefix("peft:")
    if name not in ("lora", "dora"):
        raise UserError(
            f"the size of {method!r} is not set by a rank",
            where="rank_for_budget",
            fix="use peft:lora or peft:dora",
        )
    if budget < 1:
        raise UserError(f"the budget is {budget}", where="rank_for_budget", fix="give 1 or more")
    shape = config or peft_method(name).config_class()
    layers = target_layers(backbone, shape).values()
    per_rank = sum(layer.in_features + layer.out_features for layer in layers)
    fixed = sum(layer.out_features for layer in layers) if name == "dora" else 0
    lower = max(1, (budget - fixed) // per_rank)
    return min((lower, lower + 1), key=lambda r: abs(fixed + r * per_rank - budget))
