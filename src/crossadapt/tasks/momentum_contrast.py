"""HADA's objective: contrast with a momentum queue and soft targets, and matching.

Nguyen et al. 2023, arXiv 2301.04742, after Li et al. 2021 (ALBEF), arXiv 2107.07651. With z the
vectors of a batch, z' those of momentum copies of both branches, Q queues of earlier z', t the
temperature and sim the mixed cosine (`HadaFusion.weights`):

    s_i2t = sim(z_image, [z'_text ; Q_text]) / t          (B, B + |Q|), and s_t2i alike
    targets = d softmax(s') + (1 - d) same / sum(same)     d rises from 0 to `distil` in epoch 1
    loss = w CE(s_i2t) + (1 - w) CE(s_t2i) + matching      3 B pairs, near misses drawn by s

Momentum copies follow after every update.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossadapt.backbones.tower_tokens import TokenFeatures
from crossadapt.errors import UserError
from crossadapt.layers.matching import matching_loss
from crossadapt.layers.momentum import MomentumQueue, average_into, same_keys, soft_targets
from crossadapt.methods.hada import HadaFusion

STREAMS = ("image", "text")
USUAL_QUEUE = 4096
COLDEST, WARMEST = 0.001, 0.5
"""Bounds of the temperature."""


@dataclass(frozen=True)
class FusionConfig:
    """What the task has beyond the settings of every run."""

    queue: int | None = None
    """Rows of each queue, a multiple of the batch size; unset: the largest one up to 4,096 that
    is. Published with 64,000."""
    momentum: float = 0.995
    """Share of a momentum copy that stays at an update."""
    distil: float = 0.4
    """Share of the momentum copies' opinion in the targets, reached after the first epoch; 0 for
    plain targets."""
    image_weight: float = 0.5
    """Weight w of pictures looking for texts; published with 0.25, 0.3 and 0.5."""
    temperature: float = 0.07
    """Start of the trained temperature, kept in [0.001, 0.5]."""
    matching: float = 1.0
    """Weight of the matching loss; 0 leaves the matching head untrained."""
    momentum_noise: bool = False
    """As in the released code: dropout and batch statistics stay on in the momentum copies, and
    running statistics are not averaged."""
    start_from: str = ""
    """Folder of a trained hada adapter to start from (the paper's second stage)."""
    cache_mb: int = 4096
    """Most MiB of memory for the members' features."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        fine = {
            "queue": self.queue is None or self.queue >= 1,
            "momentum": 0 <= self.momentum <= 1,
            "distil": 0 <= self.distil <= 1,
            "image_weight": 0 <= self.image_weight <= 1,
            "temperature": 0.001 <= self.temperature <= 0.5,
            "matching": self.matching >= 0,
            "cache_mb": self.cache_mb >= 0,
        }
        for name, good in fine.items():
            if not good:
                raise UserError(
                    f"{name} cannot be {getattr(self, name)}",
                    where="task_options",
                    fix="see docs/methods/hada.md for the range",
                )


class MomentumContrast:
    """The objective of one fusion, with its momentum copies, queue and temperature.

    Args:
        fusion: what is trained.
        config: options.
        batch: rows of a global batch.
        seed: of the queue's first vectors.

    Raises:
        UserError: the queue is no multiple of the batch.
    """

    def __init__(self, fusion: HadaFusion, config: FusionConfig, batch: int, seed: int) -> None:
        self.fusion, self.config = fusion, config
        device = next(fusion.parameters()).device
        self.momentum = copy.deepcopy(fusion.branches).requires_grad_(False)
        self.momentum.train(config.momentum_noise)
        self.temperature = nn.Parameter(torch.tensor(config.temperature, device=device))
        self.size = fusion.config.output
        # The members' own vectors are needed only where they are mixed in.
        self.widths = [self.size, *(fusion.sizes if fusion.mix is not None else [])]
        streams = dict.fromkeys(STREAMS, self.widths)
        rows = config.queue or max(1, USUAL_QUEUE // batch) * batch
        self.queue = MomentumQueue(rows, batch, streams, 2, seed).to(device)
        self._step = torch.zeros(1, dtype=torch.int64)
        self._pending: tuple[dict[str, Tensor], Tensor] | None = None

    @property
    def steps(self) -> int:
        """Updates made so far."""
        return int(self._step)

    def vectors(self, tower: str, prepared: Sequence[TokenFeatures]) -> tuple[Tensor, Tensor]:
        """Vectors (B, P) of the branch, and of its momentum copy without graph."""
        with torch.no_grad():
            slow = self.momentum[tower](prepared)
        return self.fusion.branches[tower](prepared), slow

    def loss(
        self, rows: Mapping[str, Tensor], keys: Tensor, epochs: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss, and numbers to log.

        Args:
            rows: per stream ``[z ; z' ; e_1 .. e_n]`` (B, 2 P + sum of D_i), unit vectors.
            keys: (B, K), two rows belong together when any key is equal.
            epochs: how far training is, for the rise of the soft targets.
        """
        fast, slow = {}, {}
        for name, x in rows.items():
            z, other, own = x.split([self.size, self.size, sum(self.fusion.sizes)], 1)
            fast[name] = torch.cat([z, own], 1)[:, : sum(self.widths)]
            slow[name] = torch.cat([other, own], 1)[:, : sum(self.widths)].detach()
        same = same_keys(keys, torch.cat([keys, self.queue.keys]))
        share = self.config.distil * min(1.0, epochs)
        logits, contrast = {}, {}
        for name, other in (("image", "text"), ("text", "image")):
            against = torch.cat([slow[other], self.queue.rows[other]])
            logits[name] = self.similarity(fast[name], against)
            with torch.no_grad():
                opinion = self.similarity(slow[name], against) if share > 0 else None
            targets = soft_targets(same, opinion, share)
            contrast[name] = -(targets * logits[name].log_softmax(1)).sum(1).mean()
        self._pending = (slow, keys)
        itc = self.config.image_weight * contrast["image"]
        itc = itc + (1 - self.config.image_weight) * contrast["text"]
        itm = self._matching(rows, logits, same[:, : len(keys)])
        return itc + self.config.matching * itm, self._log(itc, itm)

    def _matching(
        self, rows: Mapping[str, Tensor], logits: Mapping[str, Tensor], same: Tensor
    ) -> Tensor:
        """The matching loss; 0 without graph when the batch has nothing to tell apart."""
        count, size = len(same), self.size
        found = matching_loss(
            self.fusion.matching,
            rows["image"][:, :size],
            rows["text"][:, :size],
            logits["image"][:, :count],
            logits["text"][:, :count],
            same,
        )
        return self.temperature.new_zeros(()) if found is None else found

    def _log(self, itc: Tensor, itm: Tensor) -> dict[str, float]:
        named = {"itc": itc, "itm": itm, "temperature": self.temperature}
        shares = self.fusion.weights().tolist() if self.fusion.mix is not None else []
        return {name: float(x.detach()) for name, x in named.items()} | {
            f"share_{index}": value for index, value in enumerate(shares)
        }

    def similarity(self, rows: Tensor, against: Tensor) -> Tensor:
        """Mixed cosines (N, M) of ``[z ; e_1 .. e_n]`` with such rows, over the temperature.

        Unless members are mixed in there are no e_i.
        """
        parts = zip(
            self.fusion.weights()[: len(self.widths)],
            rows.split(self.widths, 1),
            against.split(self.widths, 1),
            strict=True,
        )
        return torch.stack([w * (a @ b.T) for w, a, b in parts]).sum(0) / self.temperature

    def after_step(self) -> None:
        """Keep bounds, let the momentum copies follow, and remember the batch in the queue."""
        self.fusion.limit()
        with torch.no_grad():
            self.temperature.clamp_(COLDEST, WARMEST)
        buffers = not self.config.momentum_noise
        average_into(self.momentum, self.fusion.branches, self.config.momentum, buffers)
        if self._pending is not None:
            self.queue.add(*self._pending)
            self._pending = None
        self._step += 1

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, by name; written into in place."""
        copies = {f"momentum.{n}": x for n, x in self.momentum.state_dict().items()}
        queue = {f"queue.{n}": x for n, x in self.queue.state().items()}
        return {**copies, **queue, "step": self._step}
