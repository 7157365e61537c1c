"""What a runtime beside PyTorch is: something that runs the ONNX files of `exporting`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from crossadapt.backbones.exporting import INPUTS, PACKAGE, EncodedTower
from crossadapt.errors import UserError


class Towers(ABC):
    """Both towers, ready to run on this machine's processor.

    Args:
        folder: holds ``vision.onnx`` and ``text.onnx``.
        precision: ``fp32`` or ``bf16``, the format of the products where the runtime has both.
        threads: of one batch.

    Raises:
        Exception: the runtime's own, for a file that it cannot read.
    """

    @abstractmethod
    def __init__(self, folder: Path, precision: str, threads: int) -> None: ...

    @abstractmethod
    def run(self, tower: EncodedTower, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Features of named inputs; errors are the runtime's own."""

    def __call__(self, tower: EncodedTower, inputs: Sequence[Tensor]) -> np.ndarray:
        """Un-normalised features, float32 (B, D), of what `exporting.INPUTS` lists for the tower.

        Raises:
            UserError: the graph cannot take the inputs' shape, which the trace has made constant.
        """
        arrays = [x.cpu().numpy() for x in inputs]
        try:
            features = self.run(tower, dict(zip(INPUTS[tower], arrays, strict=True)))
        except Exception as error:  # each runtime has kinds of its own
            raise _failed(tower, arrays[0].shape, last_line(error)) from error
        if len(features) != len(arrays[0]):
            raise _failed(tower, arrays[0].shape, f"{len(features)} rows came out")
        return features


@dataclass(frozen=True)
class Runtime(ABC):
    """One way to run exported towers."""

    name: str
    """As `--runtime` has it."""
    title: str
    package: ClassVar[str]
    extra: ClassVar[str]

    def installed(self) -> bool:
        """Whether its packages can be imported; they are not imported for that."""
        return all(importlib.util.find_spec(name) for name in (self.package, PACKAGE))

    def require(self) -> None:
        """Refuse to go on without its packages.

        Raises:
            UserError: they are not installed.
        """
        if not self.installed():
            raise UserError(
                f"the runtime {self.name} is not installed",
                where="runtime",
                fix=f"pip install 'crossadapt[{self.extra}]', or use the runtime torch",
            )

    def version(self) -> str:
        """Of the installed library."""
        return importlib.metadata.version(self.package)

    @property
    def own_files(self) -> bool:
        """Whether it runs files that `derive` makes instead of the exported ones."""
        return False

    def derive(self, exported: Path, folder: Path) -> None:
        """Write what it runs into `folder`, from the exported files in another."""
        raise NotImplementedError

    @abstractmethod
    def load(self, folder: Path, precision: str, threads: int) -> Towers:
        """The towers of a folder, ready to run."""


def last_line(error: Exception) -> str:
    """The end of what a runtime says, where the reason is."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:200] if lines else type(error).__name__


def _failed(tower: str, shape: tuple[int, ...], reason: str) -> UserError:
    return UserError(
        f"the exported {tower} tower fails at inputs of shape {shape}: {reason}",
        where="runtime",
        fix="use the runtime torch",
    )
