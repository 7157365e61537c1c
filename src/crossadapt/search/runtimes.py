"""Which library runs the encoders of a view: PyTorch, or another one behind the gate.

An export is made once and cached (`runtime_cache`), compared with PyTorch once (`runtime_gate`),
and for ``auto`` timed against it once per machine (`runtime_trial`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from crossadapt.backbones.onnx_runtime import ONNX, ONNX_INT8
from crossadapt.backbones.openvino import OPENVINO
from crossadapt.backbones.runtime import Runtime
from crossadapt.errors import UserError, did_you_mean
from crossadapt.search.runtime_gate import Verdict
from crossadapt.search.runtime_trial import TORCH, TakeSample, Trial

if TYPE_CHECKING:
    from crossadapt.search.embedder import Embedder

RuntimeName = Literal["auto", "torch", "openvino", "onnx", "onnx-int8"]
RUNTIMES: Mapping[str, Runtime] = {each.name: each for each in (OPENVINO, ONNX, ONNX_INT8)}
WORTH = 1.1
"""`auto` leaves PyTorch for a runtime that is at least so many times as fast."""


@dataclass(frozen=True)
class Choice:
    """What runs the encoders of a view, and why."""

    view: str
    runtime: str
    reason: str
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """The gate's, of every runtime that was tried."""
    speeds: Mapping[str, float] | None = None
    """Pictures per second of each runtime, where ``auto`` compared them."""

    def __str__(self) -> str:
        return f"view {self.view}: runtime {self.runtime}, {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "runtime": self.runtime,
            "reason": self.reason,
            "gate": {name: verdict.to_dict() for name, verdict in self.verdicts.items()},
            "images_per_second": None if self.speeds is None else dict(self.speeds),
        }


def choose(embedder: Embedder, view: str, wanted: str, sample: TakeSample | None = None) -> Choice:
    """Let a runtime encode the rows of `view` from now on.

    Args:
        embedder: nobody else uses it meanwhile.
        view: ``frozen`` or an adapter's name.
        wanted: ``torch``; the name of another runtime; or ``auto``: of those that are installed
            the fastest one that passes the gate and is at least `WORTH` times as fast here as
            PyTorch, else PyTorch.
        sample: called when something has to be compared; what it gives, or generated inputs when it
            gives None, is compared on. A verdict from generated inputs counts until there are
            others.

    Raises:
        UserError: an unknown view or runtime; or, unless ``auto`` was asked for, one that is not
            installed, does not run on this device, cannot take the model, or is refused by the
            gate, with the numbers.
    """
    check_runtime(wanted)
    embedder.run_by(view, None)
    if wanted == TORCH:
        return Choice(view, TORCH, "as asked")
    if wanted == "auto":
        return _fastest(embedder, view, sample)
    _check_place(embedder)
    trial, runtime = Trial(embedder, view, sample), RUNTIMES[wanted]
    verdict = trial.verdict(runtime)
    if not verdict.passed:
        raise UserError(
            _refusal(runtime, verdict),
            where=f"view {view}, precision {embedder.precision.name}",
            fix=_way_out(embedder, runtime),
        )
    embedder.run_by(view, trial.towers(runtime))
    return Choice(view, wanted, f"as asked; {verdict}", {wanted: verdict})


def check_runtime(wanted: str) -> None:
    """Refuse a runtime that nobody knows or that is not installed, before anything is done.

    Raises:
        UserError: it is one of these.
    """
    if wanted not in get_args(RuntimeName):
        raise UserError(
            f"unknown runtime {wanted!r}",
            where="runtime",
            fix=did_you_mean(wanted, get_args(RuntimeName)),
        )
    if wanted in RUNTIMES:
        RUNTIMES[wanted].require()


def _fastest(embedder: Embedder, view: str, sample: TakeSample | None) -> Choice:
    """Time what is installed, then ask the gate about one after the other, the fastest first."""
    installed = [runtime for runtime in RUNTIMES.values() if runtime.installed()]
    if not installed:
        return Choice(view, TORCH, f"none of {', '.join(RUNTIMES)} is installed")
    said: list[str] = []
    try:
        _check_place(embedder)
        trial = Trial(embedder, view, sample)
        usable = _usable(trial, installed, said)
        speeds = trial.speeds(usable)
    except UserError as error:
        return Choice(view, TORCH, error.what)
    said.insert(0, ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items()))
    said[0] += " images/s"
    verdicts: dict[str, Verdict] = {}
    for runtime in sorted(usable, key=lambda runtime: -speeds[runtime.name]):
        ratio = speeds[runtime.name] / speeds[TORCH]
        if ratio < WORTH:
            said.append(f"no other is at least {WORTH} x as fast as torch")
            break
        try:
            verdict = trial.verdict(runtime)
        except UserError as error:
            said.append(error.what)
            continue
        verdicts[runtime.name] = verdict
        if verdict.passed:
            embedder.run_by(view, trial.towers(runtime))
            said.append(f"{runtime.name} is {ratio:.2f} x as fast as torch and passes: {verdict}")
            return Choice(view, runtime.name, "; ".join(said), verdicts, speeds)
        said.append(_refusal(runtime, verdict))
    return Choice(view, TORCH, "; ".join(said), verdicts, speeds)


def _usable(trial: Trial, installed: list[Runtime], said: list[str]) -> list[Runtime]:
    """Those that can run the model; why the others cannot is added to `said`."""
    found = []
    _ = trial.exported  # what cannot be exported at all is no runtime's fault
    for runtime in installed:
        try:
            trial.seconds(runtime, 1)
        except UserError as error:
            said.append(error.what)
        else:
            found.append(runtime)
    return found


def _refusal(runtime: Runtime, verdict: Verdict) -> str:
    return f"{runtime.title} is refused: {verdict}"


def _check_place(embedder: Embedder) -> None:
    kind = embedder.backbone.device.type
    if kind != "cpu":
        raise UserError(
            f"other runtimes than PyTorch are used on CPUs only, and the embedder is on {kind}",
            where="runtime",
            fix="use the runtime torch, or the device cpu",
        )


def _way_out(embedder: Embedder, runtime: Runtime) -> str:
    ways = ["use the runtime torch"]
    if runtime is ONNX_INT8:
        ways.append("or the runtime onnx")
    if embedder.precision.name != "fp32":
        ways.append("or the precision fp32")
    return ", ".join(ways)
