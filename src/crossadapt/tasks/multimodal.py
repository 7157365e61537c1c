"""Classification of clips or pictures, with text and numeric signals as further modalities.

    logits = W pool(LN(f_1), ..., LN(f_F)) + b,    f the features of the frames

The modalities reach the frames inside the vision tower, through the method (`cm3t`). The baseline
it is measured against is softmax regression on the frozen model's features and, side by side with
them, the mean token of the text and the signals at eight moments: late fusion of the same inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter, functional

from crossadapt.adapters.attach import active, frozen
from crossadapt.data.ledger import Ledger
from crossadapt.data.manifest import Manifest
from crossadapt.data.sampling import PairSampler
from crossadapt.data.signals import read_signals
from crossadapt.errors import UserError
from crossadapt.evaluation.classification import ClassificationResult
from crossadapt.files import write_file
from crossadapt.layers.classifier_head import ClassifierHead, pool
from crossadapt.tasks import objectives
from crossadapt.tasks.base import Batch, Features, Inputs, TaskSetup, read_options
from crossadapt.tasks.clips import Clips, as_clips
from crossadapt.tasks.encode import Pixels
from crossadapt.tasks.examples import Examples, label_column
from crossadapt.tasks.linear_probe import LinearProbe, fit_probe
from crossadapt.tasks.modality_tokens import SignalTokens
from crossadapt.tasks.multimodal_options import MODALITIES, MultimodalConfig

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone

HEAD_FILE, HEAD_TENSORS = "classifier.json", "classifier.safetensors"


class MultimodalTask:
    """Learn the class of every item; see the module's text.

    Args:
        setup: data and backbone, with the adapter attached: its config says which modalities.
        config: options.

    Raises:
        UserError: a missing or blank label, fewer than two classes, or a modality that the task
            cannot make.
    """

    name = "multimodal"
    headline = "accuracy"

    def __init__(self, setup: TaskSetup, config: MultimodalConfig) -> None:
        backbone, self.config, self.precision = setup.backbone, config, setup.precision
        self.ledger = setup.ledger if setup.ledger is not None else Ledger()
        adapter = active(backbone)
        method = None if adapter is None else adapter.config
        self.sources: dict[str, int] = method.sources() if hasattr(method, "sources") else {}
        for name in self.sources:
            if name not in MODALITIES:
                raise UserError(
                    f"this task cannot make tokens of {name!r}",
                    where="modalities",
                    fix=f"it knows {' and '.join(MODALITIES)}",
                )
        labels = label_column(setup.train, config.label)
        self.classes = tuple(sorted(set(labels)))
        if len(self.classes) < 2:
            raise UserError(
                f"the training split has one class: {self.classes[0]!r}",
                where=setup.train.source,
                fix="there must be something to tell apart",
            )
        self.signals: SignalTokens | None = None
        if "signals" in self.sources:
            found = read_signals(setup.train, self.ledger)
            self.signals = SignalTokens.fit(found, config.signal_tokens)
        self.train = self.examples(backbone, setup.train, setup.pixels)
        self.sampler = PairSampler(
            setup.train, setup.batch_size, seed=setup.seed, captions=setup.captions
        )
        self.validation = None
        if setup.validation is not None and setup.validation_pixels is not None:
            self.validation = self.examples(backbone, setup.validation, setup.validation_pixels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            self.head = ClassifierHead(
                backbone.embedding_dim, self.train.clips.frames, len(self.classes), config.pooling
            ).to(backbone.device)
        self._probes: dict[tuple[str, ...], LinearProbe] = {}
        self._frames: dict[Examples, Tensor] = {}
        if config.start == "probe":
            with frozen(backbone), torch.no_grad():
                weight, bias = self.probe(backbone, ()).folded()
                self.head.linear.weight.copy_(weight.T)
                self.head.linear.bias.copy_(bias)

    def examples(self, backbone: Backbone, manifest: Manifest, pixels: Clips | Pixels) -> Examples:
        """Rows of any split as this task reads them."""
        return Examples(
            backbone,
            manifest,
            as_clips(pixels),
            classes=self.classes,
            label=self.config.label,
            signals=self.signals,
            ledger=self.ledger,
        )

    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.sampler)

    def batches(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """Rows of each global batch, from batch `start` on."""
        return self.sampler.batches(epoch, start)

    def collate(self, rows: np.ndarray) -> Batch:
        """Frames, mask, and of each modality its tensors; some modalities hidden at random."""
        hidden = torch.rand(len(rows), len(self.sources)) < self.config.modality_drop
        inputs = self.train.inputs(rows, tuple(self.sources), ~hidden)
        labels = torch.from_numpy(self.train.labels[self.train.manifest.item_index[rows]])
        return Batch({"clip": inputs}, {"label": labels, "mask": inputs[1]}, len(rows))

    def encode(self, backbone: Backbone, stream: str, inputs: Inputs) -> Tensor:
        """Features of the frames (rows, F, D)."""
        return self.train.encode(backbone, inputs, tuple(self.sources), self.config.token_drop)

    def loss(
        self, features: Features, batch: Batch, backbone: Backbone
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Cross-entropy over the rows of all processes."""
        frames = objectives.gather(features["clip"])
        targets = {name: objectives.gather(value) for name, value in batch.targets.items()}
        logits = self.head(frames, targets["mask"])
        smoothing = self.config.label_smoothing
        return functional.cross_entropy(logits, targets["label"], label_smoothing=smoothing), {}

    def validate(self, backbone: Backbone) -> dict[str, float]:
        """Accuracy and macro-F1 in percent; without adapter those of the linear probe."""
        if self.validation is None:
            return {}
        found = self.measure(backbone, self.validation)
        return {"accuracy": found.accuracy, "macro_f1": found.macro_f1}

    def parameters(self) -> Mapping[str, Parameter]:
        """The head."""
        return dict(self.head.named_parameters(prefix="head"))

    def measure(
        self, backbone: Backbone, examples: Examples, names: Sequence[str] | None = None
    ) -> ClassificationResult:
        """Classify examples with whatever is active: the adapter and head, or the linear probe.

        Args:
            backbone: without active adapter the linear probe is measured.
            examples: from `examples`.
            names: modalities to use, of the adapter's; all of them when None.
        """
        used = tuple(self.sources if names is None else names)
        if active(backbone) is None:
            logits = self.probe(backbone, used)(self._summary(backbone, examples, used))
        else:
            frames, mask = examples.features(backbone, used, self.precision)
            with torch.inference_mode():
                logits = self.head(frames.to(backbone.device), mask).cpu()
        return examples.result(logits.argmax(1).numpy())

    def probe(self, backbone: Backbone, names: tuple[str, ...]) -> LinearProbe:
        """The linear probe on the frozen features and these modalities, fitted once."""
        if names not in self._probes:
            held = None
            if self.validation is not None:
                seen = self._summary(backbone, self.validation, names)
                held = seen, torch.from_numpy(self.validation.labels)
            x = self._summary(backbone, self.train, names)
            labels = torch.from_numpy(self.train.labels)
            self._probes[names] = fit_probe(x, labels, len(self.classes), held)
        return self._probes[names]

    def _summary(self, backbone: Backbone, examples: Examples, names: tuple[str, ...]) -> Tensor:
        parts = [self._frozen_frames(backbone, examples)]
        return torch.cat([*parts, *(examples.summary(backbone, n) for n in names)], dim=1)

    def _frozen_frames(self, backbone: Backbone, examples: Examples) -> Tensor:
        """The frozen model's frames as the head sees them before it is trained; encoded once."""
        if examples not in self._frames:
            frames, mask = examples.features(backbone, (), self.precision)
            scaled = functional.layer_norm(frames, frames.shape[-1:])
            self._frames[examples] = pool(scaled, mask, self.config.pooling)
        return self._frames[examples]

    def save(self, folder: Path) -> None:
        """Write the head and what it needs beside the adapter; `load_classifier` reads it."""
        from safetensors.torch import save

        tensors = {k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}
        if self.signals is not None:
            tensors |= {
                "signals.mean": torch.from_numpy(self.signals.mean),
                "signals.std": torch.from_numpy(self.signals.std),
            }
        config = {
            "classes": list(self.classes),
            "frames": self.train.clips.frames,
            "pooling": self.config.pooling,
            "signal_tokens": self.config.signal_tokens,
        }
        write_file(folder / HEAD_TENSORS, save(tensors))
        write_file(folder / HEAD_FILE, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def make_task(setup: TaskSetup, options: Mapping[str, Any]) -> MultimodalTask:
    """The multimodal classification task of a run."""
    return MultimodalTask(setup, read_options(MultimodalConfig, options, "multimodal"))
