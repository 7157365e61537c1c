"""One view tried with other runtimes than PyTorch: export, gate, speed; what is known is cached."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from crossadapt.adapters.attach import activate
from crossadapt.backbones import exporting
from crossadapt.backbones.runtime import Runtime, Towers, last_line
from crossadapt.errors import UserError
from crossadapt.search.card import FROZEN
from crossadapt.search.runtime_cache import Entry
from crossadapt.search.runtime_gate import (
    Sample,
    Vectors,
    Verdict,
    encode,
    generated_sample,
    judge,
)

if TYPE_CHECKING:
    from crossadapt.search.embedder import Embedder

TakeSample = Callable[[], Sample | None]
TORCH = "torch"
_TIMED = 32
_TURNS = 3


class Trial:
    """One view's towers in other runtimes, compared with PyTorch.

    Args:
        embedder: nobody else uses it meanwhile; PyTorch runs the view before and after.
        view: ``frozen`` or an adapter's name.
        take: called when something has to be compared; gives what to compare on, or None.
    """

    def __init__(self, embedder: Embedder, view: str, take: TakeSample | None) -> None:
        self.embedder, self.view = embedder, view
        self._take = take
        self._towers: dict[str, Towers] = {}
        self.fingerprint = embedder.fingerprint_now(view)

    @cached_property
    def exported(self) -> Entry:
        """The exported towers, made if they are not in the cache in one piece.

        Raises:
            UserError: the model cannot be exported, or the cache cannot be written.
        """
        versions = (_version(name) for name in ("torch", "transformers", exporting.PACKAGE))
        entry = Entry(self.fingerprint, " ".join(versions))
        if not entry.whole():
            entry.make(self._export)
        return entry

    def towers(self, runtime: Runtime) -> Towers:
        """The view's towers in a runtime.

        Raises:
            UserError: it cannot take them; or as for `exported`.
        """
        if runtime.name not in self._towers:
            entry = self._files(runtime)
            try:
                self._towers[runtime.name] = runtime.load(
                    entry.folder, self.embedder.precision.name, torch.get_num_threads()
                )
            except Exception as error:  # each runtime has kinds of its own
                raise UserError(
                    f"{runtime.title} cannot run the exported model: {last_line(error)}",
                    where=str(entry.folder),
                    fix="use the runtime torch, or delete the folder and try again",
                ) from error
        return self._towers[runtime.name]

    def verdict(self, runtime: Runtime) -> Verdict:
        """The gate's, from the cache if it was found on real pictures or there are none now."""
        what = f"gate {_named(runtime)} {self.embedder.precision.name} {processor()}"
        try:
            known = Verdict.from_dict(self.exported.measured(what))
        except (KeyError, TypeError, ValueError):
            known = None
        if known is not None and (not known.generated or self.sample.generated):
            return known
        plain, exact = self._reference
        self.embedder.run_by(self.view, self.towers(runtime))
        try:
            vectors = encode(self.embedder, self.view, self.sample)
        finally:
            self.embedder.run_by(self.view, None)
        found = judge(plain, vectors, self.sample, exact)
        self.exported.remember(what, found.to_dict())
        return found

    def speeds(self, runtimes: Sequence[Runtime]) -> dict[str, float]:
        """Pictures per second, by PyTorch too, of the same batch: medians of alternating turns."""
        what = f"speed {self.embedder.precision.name} {torch.get_num_threads()} {processor()} "
        what += " ".join(map(_named, runtimes))
        names = [TORCH, *(runtime.name for runtime in runtimes)]
        known = self.exported.measured(what)
        if known.keys() == {*names} and all(isinstance(v, float) for v in known.values()):
            return known
        rows = min(_TIMED, len(self.sample.pixels))
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(_TURNS + 1):
            for name, runtime in zip(names, [None, *runtimes], strict=True):
                taken[name].append(self.seconds(runtime, rows))
        # The first turn of each allocates and picks kernels.
        found = {name: rows / statistics.median(t[1:]) for name, t in taken.items()}
        self.exported.remember(what, found)
        return found

    def seconds(self, runtime: Runtime | None, rows: int) -> float:
        """How long the first pictures of the sample take, by PyTorch for None.

        Raises:
            UserError: as for `towers`, or the runtime fails at them.
        """
        towers = None if runtime is None else self.towers(runtime)
        pixels = self.sample.pixels[:rows]
        self.embedder.run_by(self.view, towers)
        try:
            began = time.perf_counter()
            self.embedder.pictures(pixels, self.view)
            return time.perf_counter() - began
        finally:
            self.embedder.run_by(self.view, None)

    @cached_property
    def sample(self) -> Sample:
        """What all runtimes encode."""
        taken = None if self._take is None else self._take()
        return taken or generated_sample(self.embedder)

    @cached_property
    def _reference(self) -> tuple[Vectors, Vectors]:
        """By PyTorch, at the embedder's precision and as exactly as the verdict needs it."""
        plain = exact = encode(self.embedder, self.view, self.sample)
        if self.sample.owners is None and self.embedder.precision.name != "fp32":
            with self.embedder.in_float32():
                exact = encode(self.embedder, self.view, self.sample)
        return plain, exact

    def _files(self, runtime: Runtime) -> Entry:
        """Where the files that a runtime runs are; made if need be."""
        if not runtime.own_files:
            return self.exported
        exported = self.exported
        entry = Entry(self.fingerprint, f"{_named(runtime)} from {exported.made_by}")
        if not entry.whole():
            entry.make(lambda folder: runtime.derive(exported.folder, folder))
        return entry

    def _export(self, folder: Path) -> None:
        backbone = self.embedder.backbone
        with self.embedder.lock:
            activate(backbone, None if self.view == FROZEN else self.view)
            try:
                for tower in exporting.TOWERS:
                    exporting.export(backbone, tower, folder)
            finally:
                activate(backbone, None)


def processor() -> str:
    """The processor by its maker's name, where the system tells it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _named(runtime: Runtime) -> str:
    return f"{runtime.name} {runtime.version()}"


def _version(package: str) -> str:
    """The exporter's own error says it better where a package is missing."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package
