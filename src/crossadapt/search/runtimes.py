"""Which library runs the encoders of a view: PyTorch, or OpenVINO behind the gate.

An export is made once and cached (`runtime_cache`), compared with PyTorch once (`runtime_gate`),
and for ``auto`` timed against it once per machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from crossadapt.adapters.attach import activate
from crossadapt.backbones import openvino
from crossadapt.backbones.openvino import CompiledTowers
from crossadapt.errors import UserError, did_you_mean
from crossadapt.search.card import FROZEN
from crossadapt.search.runtime_cache import Entry
from crossadapt.search.runtime_gate import Sample, Verdict, encode, generated_sample, judge

if TYPE_CHECKING:
    import numpy as np

    from crossadapt.search.embedder import Embedder

RuntimeName = Literal["auto", "torch", "openvino"]
WORTH = 1.1
"""`auto` leaves PyTorch for a runtime that is at least so many times as fast."""
_TIMED = 32
_TURNS = 3

TakeSample = Callable[[], Sample | None]


@dataclass(frozen=True)
class Choice:
    """What runs the encoders of a view, and why."""

    view: str
    runtime: str
    reason: str
    verdict: Verdict | None = None
    """The gate's, where OpenVINO was tried."""
    speed: dict[str, float] | None = None
    """Pictures per second of each runtime, where ``auto`` compared them."""

    def __str__(self) -> str:
        return f"view {self.view}: runtime {self.runtime}, {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "runtime": self.runtime,
            "reason": self.reason,
            "gate": None if self.verdict is None else self.verdict.to_dict(),
            "images_per_second": self.speed,
        }


def choose(embedder: Embedder, view: str, wanted: str, sample: TakeSample | None = None) -> Choice:
    """Let a runtime encode the rows of `view` from now on.

    Args:
        embedder: nobody else uses it meanwhile.
        view: ``frozen`` or an adapter's name.
        wanted: ``torch``; ``openvino``; or ``auto``: OpenVINO if it passes the gate and is at least
            `WORTH` times as fast here, else PyTorch.
        sample: called when something has to be compared; what it gives, or generated inputs when it
            gives None, is compared on. A verdict from generated inputs counts until there are
            others.

    Raises:
        UserError: an unknown view or runtime; or, with ``openvino``, one that is not installed,
            does not run on this device, cannot take the model, or is refused by the gate, with the
            numbers.
    """
    check_runtime(wanted)
    embedder.run_by(view, None)
    if wanted == "torch":
        return Choice(view, "torch", "as asked")
    try:
        _check_place(embedder)
        trial = _Trial(embedder, view, sample)
        compiled, verdict = trial.compiled(), trial.verdict()
    except UserError as error:
        if wanted == "openvino":
            raise
        return Choice(view, "torch", error.what)
    if not verdict.passed:
        refusal = f"OpenVINO is refused: {verdict}"
        if wanted == "openvino":
            raise UserError(
                refusal,
                where=f"view {view}, precision {embedder.precision.name}",
                fix="use the runtime torch" + _other_precision(embedder),
            )
        return Choice(view, "torch", refusal, verdict)
    if wanted == "openvino":
        embedder.run_by(view, compiled)
        return Choice(view, "openvino", f"as asked; {verdict}", verdict)
    speed = trial.speed()
    ratio = speed["openvino"] / speed["torch"]
    said = (
        f"{speed['openvino']:.1f} images/s with OpenVINO, {speed['torch']:.1f} with PyTorch "
        f"({ratio:.2f} x); {verdict}"
    )
    if ratio < WORTH:
        return Choice(view, "torch", said, verdict, speed)
    embedder.run_by(view, compiled)
    return Choice(view, "openvino", said, verdict, speed)


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
    if wanted == "openvino":
        openvino.require()


class _Trial:
    """One view's export, compared with PyTorch; what is cached is not measured again."""

    def __init__(self, embedder: Embedder, view: str, sample: TakeSample | None) -> None:
        self.embedder, self.view = embedder, view
        self._take = sample
        self._sample: Sample | None = None
        self.entry = Entry(
            embedder.fingerprint_now(view),
            embedder.precision.name,
            f"openvino {openvino.version()}",
        )
        self._compiled: CompiledTowers | None = None

    def compiled(self) -> CompiledTowers:
        """The towers, exported if they are not in the cache in one piece."""
        if self._compiled is None:
            if not self.entry.whole():
                self.entry.make(self._export)
            self._compiled = _compile(self.entry, self.embedder.precision.name)
        return self._compiled

    def verdict(self) -> Verdict:
        """The gate's, from the cache if it was found on real pictures or there are none now."""
        try:
            known = Verdict.from_dict(self.entry.measured()["gate"])
        except (KeyError, TypeError, ValueError):
            known = None
        if known is not None and (not known.generated or self.sample().generated):
            return known
        sample = self.sample()
        reference = encode(self.embedder, self.view, sample)
        exact = reference
        if sample.owners is None and self.embedder.precision.name != "fp32":
            with self.embedder.in_float32():
                exact = encode(self.embedder, self.view, sample)
        self.embedder.run_by(self.view, self.compiled())
        try:
            found = judge(reference, encode(self.embedder, self.view, sample), sample, exact)
        finally:
            self.embedder.run_by(self.view, None)
        self.entry.remember(gate=found.to_dict())
        return found

    def speed(self) -> dict[str, float]:
        """Pictures per second of both on the same batch: medians of alternating turns."""
        import torch

        place = {"processor": openvino.processor(), "threads": torch.get_num_threads()}
        known = self.entry.measured().get("speed", {})
        names = ("torch", "openvino")
        if isinstance(known, dict) and place.items() <= known.items() and known.keys() >= {*names}:
            return {name: float(known[name]) for name in names}
        rows = self.sample().pixels[:_TIMED]
        taken: dict[str, list[float]] = {"torch": [], "openvino": []}
        try:
            for _ in range(_TURNS + 1):
                for name, towers in (("torch", None), ("openvino", self.compiled())):
                    self.embedder.run_by(self.view, towers)
                    taken[name].append(_seconds(self.embedder, rows, self.view))
        finally:
            self.embedder.run_by(self.view, None)
        # The first turn of each allocates and picks kernels.
        found = {name: len(rows) / statistics.median(t[1:]) for name, t in taken.items()}
        self.entry.remember(speed=found | place)
        return found

    def sample(self) -> Sample:
        """What both runtimes encode; taken once."""
        if self._sample is None:
            taken = None if self._take is None else self._take()
            self._sample = taken or generated_sample(self.embedder)
        return self._sample

    def _export(self, folder: Path) -> None:
        backbone = self.embedder.backbone
        with self.embedder.lock:
            activate(backbone, None if self.view == FROZEN else self.view)
            try:
                for tower in openvino.TOWERS:
                    openvino.export(backbone, tower, folder / f"{tower}.xml")
            finally:
                activate(backbone, None)


def _compile(entry: Entry, precision: str) -> CompiledTowers:
    try:
        return CompiledTowers(entry.folder, precision)
    except RuntimeError as error:
        raise UserError(
            f"OpenVINO cannot run the exported model: {str(error).strip().splitlines()[-1][:200]}",
            where=str(entry.folder),
            fix="use the runtime torch, or delete the folder and try again",
        ) from error


def _seconds(embedder: Embedder, pixels: np.ndarray, view: str) -> float:
    began = time.perf_counter()
    embedder.pictures(pixels, view)
    return time.perf_counter() - began


def _check_place(embedder: Embedder) -> None:
    openvino.require()
    kind = embedder.backbone.device.type
    if kind != "cpu":
        raise UserError(
            f"OpenVINO is used on CPUs only, and the embedder is on {kind}",
            where="runtime",
            fix="use the runtime torch, or the device cpu",
        )


def _other_precision(embedder: Embedder) -> str:
    return ", or the precision fp32" if embedder.precision.name != "fp32" else ""
