"""Which number format the forward pass uses, and why."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from crossadapt.errors import UserError, did_you_mean

PrecisionName = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class Precision:
    """A chosen format: `name` is "bf16" or "fp32", `reason` says who chose it."""

    name: str
    reason: str
    device: str

    def autocast(self) -> AbstractContextManager[Any]:
        """Context for one encoder call. Weights stay fp32; matrix products run in `name`.

        A new context per call: autocast remembers cast weights until it is left, and a copy made
        under `no_grad` would be found again, without a gradient, by a later call.
        """
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)


def choose_precision(requested: PrecisionName | str = "auto", device: str = "cpu") -> Precision:
    """bf16 where the hardware multiplies in it, fp32 elsewhere, unless the caller decides."""
    kind = torch.device(device).type
    if requested not in ("auto", "bf16", "fp32"):
        raise UserError(
            f"unknown precision {requested!r}",
            where="precision",
            fix=did_you_mean(requested, ("auto", "bf16", "fp32")),
        )
    if requested != "auto":
        return Precision(requested, "asked for", kind)
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "this GPU multiplies in bf16", kind)
        return Precision("fp32", "this GPU has no bf16", kind)
    if kind == "cpu" and _cpu_has_bf16():
        return Precision("bf16", "this CPU multiplies in bf16", kind)
    return Precision("fp32", f"no bf16 products on this {kind}", kind)


def choose_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; a GPU where there is one.

    Raises:
        UserError: an unknown device, or one that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"unknown device {name!r}", where="device", fix="use auto, cpu or cuda"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device", where="device", fix="use cpu or auto")
    return device


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX; a CPU without either emulates bf16 at a fraction of fp32's speed."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
