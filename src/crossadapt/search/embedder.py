"""Pictures and texts to unit vectors, by the frozen model or any of the adapters attached to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crossadapt import backbones
from crossadapt.adapters.attach import activate, attached, detach
from crossadapt.adapters.folder import load_adapter
from crossadapt.adapters.mixture import mixed
from crossadapt.adapters.reading import read_adapter_config
from crossadapt.backbones.base import TokenBatch
from crossadapt.backbones.precision import Precision, choose_device, choose_precision
from crossadapt.errors import UserError, did_you_mean
from crossadapt.search.card import FROZEN, View
from crossadapt.search.fingerprints import adapter_fingerprint, frozen_fingerprint
from crossadapt.search.row_groups import batches, group_rows, strength_now
from crossadapt.tasks.encode import cut

if TYPE_CHECKING:
    from PIL import Image

    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.exporting import EncodedTower
    from crossadapt.backbones.hf import HFBackbone
    from crossadapt.backbones.runtime import Towers

DEFAULT_BACKBONE = "pico-clip"
_SIZES = {"vision": 128, "text": 256}
"""Rows in one forward pass."""


class Embedder:
    """One frozen backbone and any number of adapters on it; may be shared by threads.

    Rows that ask for different adapters are encoded in one forward pass as long as these adapters
    are insertions (see `crossadapt.adapters.mixture`); for the rest, one pass is made per adapter.
    Either way a row comes out as if its adapter had been alone. The backbone's weights are held
    once: an adapter adds its own parameters and nothing else.

    Args:
        backbone: frozen; no adapter may be active. It belongs to the embedder from now on.
        precision: number format of the matrix products; chosen from the hardware when None.
    """

    def __init__(self, backbone: HFBackbone, precision: Precision | None = None) -> None:
        self.backbone = backbone
        self.precision = precision or choose_precision("auto", str(backbone.device))
        self.lock = threading.RLock()  # held while rows are encoded
        self._views = {FROZEN: View(FROZEN, frozen_fingerprint(self.backbone), "", "", 0)}
        self._adapters: dict[str, AttachedAdapter] = {}
        self._compiled: dict[str, tuple[Towers, float]] = {}

    @classmethod
    def open(
        cls,
        backbone: str | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
    ) -> Embedder:
        """Load a backbone and adapters.

        Args:
            backbone: as for `crossadapt.load`; when None the one the first adapter was trained
                on, or `pico-clip` without adapters.
            adapters: name to folder, as `crossadapt train` writes them.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            precision: ``auto``, ``bf16`` or ``fp32``.

        Raises:
            UserError: an unknown backbone or device, or an adapter that is damaged or was trained
                on another backbone.
        """
        adapters = adapters or {}
        if backbone is None:
            first = next(iter(adapters.values()), None)
            saved = None if first is None else read_adapter_config(first)
            backbone = DEFAULT_BACKBONE if saved is None else str(saved["backbone"]["source"])
        place = choose_device(device)
        choice = choose_precision(precision, str(place))
        model = backbones.load(backbone)
        model.to(place)
        model.use_attention("auto")
        embedder = cls(model, choice)
        for name, folder in adapters.items():
            embedder.add(name, folder)
        return embedder

    @property
    def dim(self) -> int:
        """Size D of the vectors."""
        return self.backbone.embedding_dim

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order in which they were added; ``frozen`` is always there too."""
        return tuple(self._adapters)

    def add(self, name: str, folder: str | Path) -> View:
        """Attach the adapter saved in `folder` under a name; others stay as they are.

        Raises:
            UserError: the name is taken or malformed, or the folder does not fit the backbone.
        """
        if name == FROZEN:
            raise UserError(
                "'frozen' is the name of the model without adapter",
                where=str(folder),
                fix="give the adapter another name: NAME=FOLDER",
            )
        with self.lock:
            try:
                adapter = load_adapter(self.backbone, folder, name=name)
            finally:
                activate(self.backbone, None)
            adapter.eval()
            self._adapters[name] = adapter
            fingerprint = adapter_fingerprint(self.backbone, adapter, adapter.strength)
            count = adapter.count()
            self._views[name] = View(name, fingerprint, str(folder), adapter.method, count)
            return self._views[name]

    def remove(self, name: str) -> None:
        """Detach an adapter and free its memory.

        Raises:
            UserError: there is none of that name.
        """
        with self.lock:
            self._adapter(name)
            detach(self.backbone, name)
            del self._adapters[name], self._views[name]
            self._compiled.pop(name, None)

    def run_by(self, view: str, towers: Towers | None) -> None:
        """From now on rows of `view` are encoded by `towers`, or by PyTorch for None.

        It holds one strength of the adapter: dialled to another, rows go through PyTorch.
        `crossadapt.search.runtimes.choose` gives towers that have passed the gate.

        Raises:
            UserError: there is no such view.
        """
        with self.lock:
            adapter = self._adapter(view)
            self._compiled.pop(view, None)
            if towers is not None:
                self._compiled[view] = (towers, strength_now(adapter))

    def view(self, view: str) -> View:
        """What a collection's card says about vectors of this view.

        Raises:
            UserError: there is no such view.
        """
        self._adapter(view)
        return self._views[view]

    def fingerprint(self, view: str) -> str:
        """Hex SHA-256 over all that changes a vector: backbone, method, config, tensors, strength.

        Raises:
            UserError: there is no such view.
        """
        return self.view(view).fingerprint

    def fingerprint_now(self, view: str) -> str:
        """The same with the adapter as it is now: dialled in this thread, or changed since."""
        adapter = self._adapter(view)
        if adapter is None:
            return frozen_fingerprint(self.backbone)
        return adapter_fingerprint(self.backbone, adapter, strength_now(adapter))

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A picture as the model sees it: uint8 (3, H, W), resized and cropped."""
        return self.backbone.preprocess.array(image)

    def pictures(self, pixels: np.ndarray, views: str | Sequence[str] = FROZEN) -> np.ndarray:
        """Vectors of prepared pictures: float32 (N, D) of length one, in the order given.

        Args:
            pixels: uint8 (N, 3, H, W).
            views: one view for all rows, or one for each.

        Raises:
            UserError: an unknown view, or another number of views than of rows.
        """
        chosen = self._rows(len(pixels), views)

        def inputs(rows: np.ndarray) -> tuple[Tensor, ...]:
            batch = torch.from_numpy(np.ascontiguousarray(pixels[rows])).to(self.backbone.device)
            return (self.backbone.preprocess.normalise(batch),)

        return self._encode(np.arange(len(pixels)), chosen, inputs, "vision")

    @contextmanager
    def alone(self, view: str) -> Iterator[HFBackbone]:
        """The backbone with the adapter of `view` for whatever comes in, and nobody else's.

        Raises:
            UserError: there is no such view.
        """
        with self.lock, torch.inference_mode():
            activate(self.backbone, None if self._adapter(view) is None else view)
            try:
                with self.precision.autocast():
                    yield self.backbone
            finally:
                activate(self.backbone, None)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Inside the block PyTorch's products are taken in float32."""
        with self.lock:
            before, self.precision = self.precision, replace(self.precision, name="fp32")
            try:
                yield
            finally:
                self.precision = before

    def texts(self, texts: Sequence[str], views: str | Sequence[str] = FROZEN) -> np.ndarray:
        """Vectors of texts: float32 (N, D) of length one, in the order given.

        Texts of similar length are encoded together, each batch cut to its longest. Arguments and
        errors as for `pictures`.
        """
        chosen = self._rows(len(texts), views)
        if not len(texts):
            return np.zeros((0, self.dim), np.float32)
        with self.lock:  # fast tokenizers refuse to be borrowed by two threads
            tokens = self.backbone.tokenize(texts)

        def inputs(rows: np.ndarray) -> tuple[Tensor, ...]:
            batch = cut(TokenBatch(tokens.ids[rows], tokens.mask[rows]))
            return batch.ids.to(self.backbone.device), batch.mask.to(self.backbone.device)

        order = tokens.mask.sum(dim=1).argsort(stable=True).numpy()
        return self._encode(order, chosen, inputs, "text")

    def _encode(
        self,
        order: np.ndarray,
        chosen: Sequence[AttachedAdapter | None],
        inputs: Callable[[np.ndarray], tuple[Tensor, ...]],
        tower: EncodedTower,
    ) -> np.ndarray:
        """Unit vectors in the rows' own order; rows are encoded in `order`, some at a time."""
        found = np.zeros((len(order), self.dim), np.float32)
        size = _SIZES[tower]
        with self.lock, torch.inference_mode():
            groups = group_rows(order, chosen, {n: s for n, (_, s) in self._compiled.items()})
            for name, members in groups.compiled.items():
                for rows in batches(members, size):
                    features = self._compiled[name][0](tower, inputs(rows))
                    found[rows] = F.normalize(torch.from_numpy(features), dim=-1).numpy()
            for rows in batches(groups.together, size):
                with mixed(self.backbone, [chosen[row] for row in rows]):
                    found[rows] = self._unit(tower, inputs(rows))
            for name, members in groups.alone.items():
                with self.alone(name):
                    for rows in batches(members, size):
                        found[rows] = self._unit(tower, inputs(rows))
        return found

    def _unit(self, tower: EncodedTower, inputs: tuple[Tensor, ...]) -> np.ndarray:
        encode = self.backbone.encode_image if tower == "vision" else self.backbone.encode_text
        with self.precision.autocast():
            features = encode(*inputs)
        return F.normalize(features.float(), dim=-1).cpu().numpy()

    def _rows(self, count: int, views: str | Sequence[str]) -> list[AttachedAdapter | None]:
        if isinstance(views, str):
            return [self._adapter(views)] * count
        if len(views) != count:
            raise UserError(
                f"{len(views)} views were given for {count} rows",
                where="views",
                fix="give one view for each row, or a single name for all",
            )
        return [self._adapter(view) for view in views]

    def _adapter(self, view: str) -> AttachedAdapter | None:
        if view == FROZEN:
            return None
        if view not in self._adapters:
            raise UserError(
                f"no adapter named {view!r} is loaded",
                where="view",
                fix=did_you_mean(view, self._views),
            )
        return attached(self.backbone, view)
