"""Everything that can be wrong with a plan, found before anything is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from crossadapt.adapters.inside import check_inside
from crossadapt.adapters.joining import check_join
from crossadapt.adapters.plan import (
    Companion,
    Heads,
    Insertion,
    Join,
    Override,
    Prompts,
    Shadow,
    Stream,
)
from crossadapt.adapters.prompting import check_prompts
from crossadapt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone, Site

_SERIAL = ("embedding", "attention", "cross-attention")
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_name(backbone: Backbone, name: str) -> None:
    """Refuse an adapter name that is malformed or taken.

    Raises:
        UserError: with the names in use.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be an adapter name",
            where="name",
            fix="use letters, digits, '-' and '_' only",
        )
    if name in backbone.adapters:
        raise UserError(
            f"an adapter named {name!r} is already attached",
            where=f"attached: {', '.join(backbone.adapters)}",
            fix="give another name, or detach that one first",
        )
    if hasattr(backbone.adapters, name):
        raise UserError(
            f"{name!r} cannot be an adapter name: PyTorch uses it", where="name", fix="change it"
        )


def check_plan(backbone: Backbone, plan: Any, method: str) -> None:
    """Refuse a plan that cannot be carried out on `backbone` as a whole.

    Raises:
        UserError: unknown or duplicate site, wrong width, unknown, duplicate or frozen-for-good
            parameter, non-finite values, a shadow beside other items, or nothing to train.
    """
    if not isinstance(plan, Sequence) or not plan:
        raise UserError(
            f"the plan of {method} is empty",
            where=backbone.source,
            fix="check the method's options; nothing would be trained",
        )
    sites = {site.name: site for site in backbone.sites()}
    parameters = dict(backbone.model.named_parameters())
    seen: set[str] = set()
    for item in plan:
        if isinstance(item, Insertion):
            key = _check_insertion(item, sites, method, backbone.source)
        elif isinstance(item, Heads | Stream):
            key = check_inside(backbone, item, method)
            for name, parameter in item.module.named_parameters():
                check_finite(parameter, f"{key}.{name}")
            if isinstance(item, Stream):
                _probe(item.module, key, item.site.width, item.site.width)
        elif isinstance(item, Prompts):
            key = check_prompts(backbone, item, method)
        elif isinstance(item, Companion):
            key = "a companion"
        elif isinstance(item, Join):
            key = check_join(backbone, item, method)
        elif isinstance(item, Override):
            key = _check_override(item, parameters, method, backbone.source)
        elif isinstance(item, Shadow):
            if len(plan) > 1:
                raise UserError(
                    f"the plan of {method} has other items beside a Shadow",
                    fix="a Shadow must be the only item of its plan",
                )
            continue
        else:
            raise UserError(
                f"the plan of {method} contains a {type(item).__name__}",
                fix="a plan holds items of `crossadapt.adapters.plan` only: Insertion, Override, …",
            )
        if key in seen:
            raise UserError(f"the plan of {method} uses {key} twice", fix="give every target once")
        seen.add(key)


def _check_insertion(item: Insertion, sites: Mapping[str, Site], method: str, source: str) -> str:
    site = item.site
    if sites.get(site.name) != site:
        raise UserError(
            f"the plan of {method} inserts at {site.name!r}, which {source} has not",
            where=site.path,
            fix=did_you_mean(site.name, sites),
        )
    if not isinstance(item.module, nn.Module):
        raise UserError(
            f"the plan of {method} inserts a {type(item.module).__name__}",
            where=site.name,
            fix="insert a torch.nn.Module",
        )
    allowed = (item.parallel and site.kind not in _SERIAL) or (
        not item.parallel and site.kind != "residual"
    )
    if not allowed:
        raise UserError(
            f"the plan of {method} inserts {'in parallel to' if item.parallel else 'behind'} "
            f"{site.name}",
            where=site.path,
            fix="parallel insertions stand at mlp, block, residual, key and value sites, others at "
            "all but residual sites",
        )
    for name, parameter in item.module.named_parameters():
        check_finite(parameter, f"{site.name}.{name}")
    read = site.read_width if item.parallel and site.read_width else site.width
    _probe(item.module, site.name, read, site.width)
    return site.name


def _probe(module: nn.Module, where: str, read: int, width: int) -> None:
    """Run the module once on zeros, to see that it maps (..., read) to (..., width)."""
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    dtype = parameter.dtype if parameter is not None else torch.float32
    try:
        with torch.no_grad():
            out = module(torch.zeros(1, 2, read, device=device, dtype=dtype))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the module for {where} does not accept {read} channels: {error}",
            where=where,
            fix=f"build it with width {read}",
        ) from error
    if not isinstance(out, torch.Tensor) or out.shape != (1, 2, width):
        shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise UserError(
            f"the module for {where} turns (1, 2, {read}) into {shape}",
            where=where,
            fix="an insertion must keep the shape of its input"
            if read == width
            else f"it must give (1, 2, {width})",
        )


def _check_override(
    item: Override, parameters: Mapping[str, nn.Parameter], method: str, source: str
) -> str:
    if item.parameter not in parameters:
        raise UserError(
            f"the plan of {method} trains {item.parameter!r}, which is no parameter of the model",
            where=source,
            fix=did_you_mean(item.parameter, parameters),
        )
    original = parameters[item.parameter]
    if not original.is_floating_point():
        raise UserError(
            f"{item.parameter} is stored as {original.dtype} and cannot be trained",
            where=source,
            fix="load the backbone in float32, float16 or bfloat16",
        )
    check_finite(original, item.parameter)
    return item.parameter


def check_finite(tensor: torch.Tensor, where: str) -> None:
    """Refuse a tensor with NaN or infinite values; meta tensors have none to look at.

    Raises:
        UserError: naming the tensor.
    """
    if tensor.device.type != "meta" and not bool(torch.isfinite(tensor).all()):
        raise UserError(
            "the tensor contains values that are not finite",
            where=where,
            fix="load an intact copy, or check what wrote it (a run whose loss became NaN?)",
        )
