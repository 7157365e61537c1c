"""Labelled items with their frames, texts and signals, for training and for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crossadapt.backbones.base import TokenBatch
from crossadapt.backbones.precision import Precision
from crossadapt.data.ledger import Ledger
from crossadapt.data.manifest import Manifest
from crossadapt.data.signals import read_signals
from crossadapt.errors import UserError, did_you_mean
from crossadapt.evaluation.classification import ClassificationResult, class_numbers
from crossadapt.layers.modalities import Tokens, modalities
from crossadapt.tasks.base import Inputs
from crossadapt.tasks.clips import Clips, clip_features, stack_clips
from crossadapt.tasks.encode import cut, evaluating, where
from crossadapt.tasks.modality_tokens import SignalTokens, padded, resampled, text_tokens

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

POINTS = 8
"""Moments of a series that the linear probe sees."""
_FRAMES_AT_ONCE = 128


def label_column(manifest: Manifest, name: str) -> list[str]:
    """The class of each of ``manifest.items``, as text.

    Raises:
        UserError: no such column, an empty cell, or an item with two classes.
    """
    if name not in manifest.attributes:
        raise UserError(
            f"the data has no column {name!r} with classes",
            where=manifest.source,
            fix=did_you_mean(name, manifest.attributes)
            if manifest.attributes
            else "add it, or name another with the task option label",
        )
    found: list[str | None] = [None] * len(manifest.items)
    for item, value in zip(
        manifest.item_index, manifest.table.column(name).to_pylist(), strict=True
    ):
        label = "" if value is None else str(value).strip()
        if not label or found[item] not in (None, label):
            said = "an empty class" if not label else f"the classes {found[item]!r} and {label!r}"
            raise UserError(
                f"{manifest.items[item]} has {said}", where=f"column {name}", fix="correct it"
            )
        found[item] = label
    return [label for label in found if label is not None]


class Examples:
    """The items of one split.

    Args:
        backbone: its tokenizer is used once, here.
        manifest: rows; an item's texts are its text modality, one at a time.
        clips: prepared clips of ``manifest.items``, in that order.
        classes: names of the classes.
        label: column with the class.
        signals: makes tokens of the series; None when signals are not used.
        ledger: receives signals that cannot be used.

    Attributes:
        labels: places in `classes`, int64 (items,).
    """

    def __init__(
        self,
        backbone: Backbone,
        manifest: Manifest,
        clips: Clips,
        *,
        classes: Sequence[str],
        label: str,
        signals: SignalTokens | None,
        ledger: Ledger,
    ) -> None:
        self.manifest, self.clips, self.classes = manifest, clips, tuple(classes)
        self.labels = class_numbers(label_column(manifest, label), classes, manifest.source)
        tokens = backbone.tokenize(manifest.texts)
        self._ids, self._mask = tokens.ids.int(), tokens.mask
        self._first = np.unique(manifest.item_index, return_index=True)[1]
        self._signals: list[Tensor | None] = []
        self._size = 0
        if signals is not None:
            self._size = signals.size
            found = read_signals(manifest, ledger, channels=len(signals.mean))
            self._signals = [None if s is None else signals(s) for s in found.series]

    def __len__(self) -> int:
        return len(self.manifest.items)

    def inputs(self, rows: np.ndarray, names: Sequence[str], shown: Tensor | None = None) -> Inputs:
        """Everything that is encoded of some rows.

        Args:
            rows: of the manifest.
            names: modalities, in this order.
            shown: bool (rows, names), which modality of which row is not hidden; None for all.

        Returns:
            Frames uint8 (B, F, 3, H, W) and mask (B, F), then for each modality its tensors: text
            ids, mask and (B,) whether it is shown; tokens and mask of signals.
        """
        items = self.manifest.item_index[rows]
        found = list(stack_clips(self.clips, items))
        shown = torch.ones(len(rows), len(names), dtype=torch.bool) if shown is None else shown
        for place, name in enumerate(names):
            visible = shown[:, place]
            if name == "text":
                index = torch.from_numpy(rows)
                tokens = cut(TokenBatch(self._ids[index], self._mask[index]))
                found += [tokens.ids, tokens.mask, visible]
            else:
                series, mask = padded([self._signals[i] for i in items], self._size)
                found += [series, mask & visible[:, None]]
        return tuple(found)

    @staticmethod
    def encode(
        backbone: Backbone, inputs: Inputs, names: Sequence[str], token_drop: float = 0.0
    ) -> Tensor:
        """Features of the frames (B, F, D) of what `inputs` gave for the same `names`."""
        pixels, mask, *rest = inputs
        given: dict[str, Tokens] = {}
        for name in names:
            if name == "text":
                ids, there, visible = rest[:3]
                given[name] = text_tokens(backbone, ids, there), there & visible[:, None]
                del rest[:3]
            else:
                given[name] = rest[0], rest[1]
                del rest[:2]
        with modalities(given):
            return clip_features(backbone, pixels, mask, token_drop)

    def features(
        self, backbone: Backbone, names: Sequence[str], precision: Precision | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (items, F, D) on the CPU and mask (items, F), with an item's first text."""
        device, precision = where(backbone, precision)
        step = max(1, _FRAMES_AT_ONCE // self.clips.frames)
        parts, masks = [], []
        with evaluating(backbone), torch.inference_mode():
            for start in range(0, len(self), step):
                inputs = self.inputs(self._first[start : start + step], names)
                masks.append(inputs[1])
                with precision.autocast():
                    found = self.encode(backbone, tuple(x.to(device) for x in inputs), names)
                parts.append(found.float().cpu())
        return torch.cat(parts).clone(), torch.cat(masks)

    def summary(self, backbone: Backbone, name: str) -> Tensor:
        """One modality as features that do not change, (items, width), for the linear probe."""
        if name == "signals":
            return torch.stack([resampled(s, POINTS, self._size) for s in self._signals])
        parts = []
        for start in range(0, len(self), 256):
            index = torch.from_numpy(self._first[start : start + 256])
            tokens = cut(TokenBatch(self._ids[index], self._mask[index]))
            seen = text_tokens(backbone, tokens.ids, tokens.mask).cpu()
            weights = tokens.mask[..., None].float()
            parts.append((seen * weights).sum(1) / weights.sum(1))
        return torch.cat(parts)

    def result(self, predicted: np.ndarray) -> ClassificationResult:
        """Answers for all items as a result, drawn by group in its intervals."""
        names = self.manifest.group_names
        groups = tuple(names[g] for g in self.manifest.item_groups)
        return ClassificationResult(self.labels, predicted, self.classes, groups)
