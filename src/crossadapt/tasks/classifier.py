"""A trained classifier put to use: read it back, and ask it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crossadapt.adapters.attach import active
from crossadapt.errors import UserError
from crossadapt.layers.classifier_head import ClassifierHead
from crossadapt.layers.modalities import Tokens, modalities
from crossadapt.tasks.clips import Clips, as_clips, clip_features, stack_clips
from crossadapt.tasks.encode import Pixels, cut, evaluating
from crossadapt.tasks.modality_tokens import SignalTokens, padded, text_tokens
from crossadapt.tasks.multimodal import HEAD_FILE, HEAD_TENSORS

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


class Classifier:
    """A backbone with its adapter, and the head that was trained with it.

    Made by `load_classifier`. `classes` are the names of the columns of `probabilities`.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: ClassifierHead,
        classes: Sequence[str],
        signals: SignalTokens | None,
    ) -> None:
        self.backbone, self.head, self.classes = backbone, head, tuple(classes)
        self._signals = signals

    def probabilities(
        self,
        clips: Clips | Pixels,
        texts: Sequence[str | None] | None = None,
        signals: Sequence[np.ndarray | None] | None = None,
    ) -> Tensor:
        """Probabilities (N, K) of N items.

        Args:
            clips: prepared frames or pictures, as from `open_frames` or `open_pixels`.
            texts: of each item; None, or None for one of them, goes without.
            signals: a series (T, channels) of each item, NaN where nothing was measured; likewise.

        Raises:
            UserError: as many texts or signals as items are needed, or the adapter knows no
                such modality.
        """
        clips = as_clips(clips)
        for name, values in (("texts", texts), ("signals", signals)):
            if values is not None and len(values) != len(clips):
                raise UserError(f"{len(values)} {name} for {len(clips)} items", where=name)
        if signals is not None and self._signals is None:
            raise UserError("this classifier was trained without signals", where="signals")
        parts = []
        step = max(1, 128 // clips.frames)
        with evaluating(self.backbone), torch.inference_mode():
            for start in range(0, len(clips), step):
                rows = range(start, min(start + step, len(clips)))
                pixels, mask = stack_clips(clips, rows)
                with modalities(self._tokens(rows, texts, signals)):
                    device = self.backbone.device
                    found = clip_features(self.backbone, pixels.to(device), mask.to(device))
                parts.append(self.head(found, mask).softmax(-1).cpu())
        return torch.cat(parts)

    def _tokens(
        self,
        rows: range,
        texts: Sequence[str | None] | None,
        signals: Sequence[np.ndarray | None] | None,
    ) -> dict[str, Tokens]:
        given: dict[str, Tokens] = {}
        if texts is not None:
            said = [texts[i] for i in rows]
            tokens = cut(self.backbone.tokenize([text or "-" for text in said]))
            there = torch.tensor([text is not None for text in said])
            content = text_tokens(self.backbone, tokens.ids, tokens.mask)
            given["text"] = content, tokens.mask & there[:, None]
        if signals is not None and self._signals is not None:
            listed = [None if signals[i] is None else self._signals(signals[i]) for i in rows]  # type: ignore[arg-type]
            given["signals"] = padded(listed, self._signals.size)
        return given


def load_classifier(backbone: Backbone, folder: str | Path) -> Classifier:
    """The classifier that a run of the task `multimodal` wrote, on its loaded adapter.

    Args:
        backbone: with the adapter of the same folder active (`load_adapter`).
        folder: the run's.

    Raises:
        UserError: no adapter is active, or the folder holds no classifier.
    """
    from safetensors.torch import load

    folder = Path(folder)
    if active(backbone) is None:
        raise UserError(
            "no adapter is active", where=str(folder), fix="load the folder's adapter first"
        )
    try:
        config = json.loads((folder / HEAD_FILE).read_text("utf-8"))
        tensors = load((folder / HEAD_TENSORS).read_bytes())
        head = ClassifierHead(
            backbone.embedding_dim, config["frames"], len(config["classes"]), config["pooling"]
        )
        mean, std = tensors.pop("signals.mean", None), tensors.pop("signals.std", None)
        head.load_state_dict(tensors)
    except Exception as error:
        raise UserError(
            f"the classifier cannot be read: {error}",
            where=str(folder / HEAD_FILE),
            fix="name the output folder of a run with --task multimodal",
        ) from error
    signals = None
    if mean is not None and std is not None:
        signals = SignalTokens(mean.numpy(), std.numpy(), config["signal_tokens"])
    return Classifier(backbone, head.to(backbone.device).eval(), config["classes"], signals)
