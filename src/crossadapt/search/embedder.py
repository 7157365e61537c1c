"""Pictures and texts to unit vectors, by the frozen model or any of the adapters attached to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from crossadapt.backbones.precision import Precision, choose_precision
from crossadapt.errors import UserError, did_you_mean
from crossadapt.search.card import FROZEN, View
from crossadapt.tasks.encode import cut

if TYPE_CHECKING:
    from PIL import Image

    from crossadapt.adapters.adapter import AttachedAdapter
    from crossadapt.backbones.hf import HFBackbone

DEFAULT_BACKBONE = "pico-clip"
_PICTURES = 128
_TEXTS = 256


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
        self._lock = threading.RLock()
        self._views = {FROZEN: View(FROZEN, self._frozen_fingerprint(), "", "", 0)}
        self._adapters: dict[str, AttachedAdapter] = {}

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
        place = _device(device)
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
        with self._lock:
            try:
                adapter = load_adapter(self.backbone, folder, name=name)
            finally:
                activate(self.backbone, None)
            adapter.eval()
            self._adapters[name] = adapter
            self._views[name] = View(
                name, self._fingerprint(adapter), str(folder), adapter.method, adapter.count()
            )
            return self._views[name]

    def remove(self, name: str) -> None:
        """Detach an adapter and free its memory.

        Raises:
            UserError: there is none of that name.
        """
        with self._lock:
            self._adapter(name)
            detach(self.backbone, name)
            del self._adapters[name], self._views[name]

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

        def encode(rows: np.ndarray) -> Tensor:
            batch = torch.from_numpy(np.ascontiguousarray(pixels[rows])).to(self.backbone.device)
            return self.backbone.encode_image(self.backbone.preprocess.normalise(batch))

        return self._encode(np.arange(len(pixels)), chosen, encode, _PICTURES)

    @contextmanager
    def alone(self, view: str) -> Iterator[HFBackbone]:
        """The backbone with the adapter of `view` for whatever comes in, and nobody else's.

        Raises:
            UserError: there is no such view.
        """
        with self._lock, torch.inference_mode():
            activate(self.backbone, None if self._adapter(view) is None else view)
            try:
                with self.precision.autocast():
                    yield self.backbone
            finally:
                activate(self.backbone, None)

    def texts(self, texts: Sequence[str], views: str | Sequence[str] = FROZEN) -> np.ndarray:
        """Vectors of texts: float32 (N, D) of length one, in the order given.

        Texts of similar length are encoded together, each batch cut to its longest. Arguments and
        errors as for `pictures`.
        """
        chosen = self._rows(len(texts), views)
        if not len(texts):
            return np.zeros((0, self.dim), np.float32)
        with self._lock:  # fast tokenizers refuse to be borrowed by two threads
            tokens = self.backbone.tokenize(texts)

        def encode(rows: np.ndarray) -> Tensor:
            batch = cut(TokenBatch(tokens.ids[rows], tokens.mask[rows]))
            device = self.backbone.device
            return self.backbone.encode_text(batch.ids.to(device), batch.mask.to(device))

        order = tokens.mask.sum(dim=1).argsort(stable=True).numpy()
        return self._encode(order, chosen, encode, _TEXTS)

    def _encode(
        self,
        order: np.ndarray,
        chosen: Sequence[AttachedAdapter | None],
        encode: Callable[[np.ndarray], Tensor],
        size: int,
    ) -> np.ndarray:
        """Unit vectors in the rows' own order; rows are encoded in `order`, `size` at a time."""
        found = np.zeros((len(order), self.dim), np.float32)
        mixable = [a is None or a.is_pure_insertion for a in chosen]
        together = order[[mixable[row] for row in order]] if len(order) else order
        alone: dict[str, list[int]] = {}
        for row in order:
            adapter = chosen[row]
            if adapter is not None and not mixable[row]:
                alone.setdefault(adapter.name, []).append(int(row))
        with self._lock, torch.inference_mode():
            for start in range(0, len(together), size):
                rows = together[start : start + size]
                with mixed(self.backbone, [chosen[row] for row in rows]):
                    found[rows] = self._unit(encode, rows)
            for name, members in alone.items():
                with self.alone(name):
                    for start in range(0, len(members), size):
                        rows = np.asarray(members[start : start + size])
                        found[rows] = self._unit(encode, rows)
        return found

    def _unit(self, encode: Callable[[np.ndarray], Tensor], rows: np.ndarray) -> np.ndarray:
        with self.precision.autocast():
            features = encode(rows)
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

    def _frozen_fingerprint(self) -> str:
        return hashlib.sha256(f"{self.backbone.fingerprint}\0{FROZEN}".encode()).hexdigest()

    def _fingerprint(self, adapter: AttachedAdapter) -> str:
        facts: dict[str, Any] = {
            "backbone": self.backbone.fingerprint,
            "method": adapter.method,
            "config": dataclasses.asdict(adapter.config),
            # Untrained tensors of a method, such as random projections, follow from the seed.
            "seed": adapter.seed,
        }
        if adapter.strength != 1:  # at 1, fingerprints are what they were before it was saved
            facts["strength"] = adapter.strength
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for name, parameter in sorted({**adapter.trained(), **adapter.kept()}.items()):
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            values = parameter.detach().to("cpu", torch.float32).contiguous()
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()


def _device(name: str) -> torch.device:
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
