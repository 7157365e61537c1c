"""The one training loop: `fit`. Read `_Run.train` first, then the small methods it calls.

Per step: seed from (seed, step, process), take this process's rows of the global batch, compute
the gradient (`gradient_cache`), average it over processes, clip, set the learning rate, update.
Per validation: keep the best, count the ones without progress and the ones below zero-shot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from crossadapt.adapters.attach import at_strength, attached, frozen, set_strength
from crossadapt.backbones.precision import Precision, choose_precision
from crossadapt.tasks.base import Batch, Task
from crossadapt.training import chunking, gradient_cache, updates
from crossadapt.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from crossadapt.training.config import Recipe
from crossadapt.training.events import Display, Events, Meter, format_scores, peak_memory
from crossadapt.training.optimisers import learning_rate, make_optimiser, set_learning_rate
from crossadapt.training.stopping import StopSignals, judge

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone


@dataclass(frozen=True)
class FitResult:
    """How a run ended. The trained tensors hold the best checkpoint's values.

    `status` is "finished", "early-stop", "below-zero-shot" (validation stayed under the frozen
    model's) or "interrupted" (saved; resume continues). `seconds` counts all attempts,
    `peak_memory` is in MiB, `chunk` the rows encoded at a time (None: a batch at once).
    """

    status: str
    step: int
    total: int
    trained: int
    zero_shot: dict[str, float]
    best: dict[str, float]
    best_step: int
    seconds: float
    peak_memory: float
    chunk: int | None = None


def fit(
    backbone: Backbone,
    task: Task,
    recipe: Recipe,
    *,
    output: Path,
    adapter: str = "default",
    seed: int = 0,
    precision: Precision | None = None,
    identity: Mapping[str, Any] | None = None,
    resume: bool = False,
    quiet: bool = False,
    accelerator: Accelerator | None = None,
    prefix_cache: bool = True,
) -> FitResult:
    """Train one attached adapter (and the task's own tensors) on a task.

    Args:
        backbone: with `adapter` attached, on the device to train on. Its `model` never changes.
        task: batches, features, loss, validation.
        recipe: the numbers.
        output: folder of `events.jsonl` and `checkpoints/{last,best}.safetensors`.
        adapter: name given to `attach`.
        seed: start of every random number of the run.
        precision: of the encoders; chosen from the hardware when None.
        identity: what else makes the run what it is (data, method, ...). With recipe and seed it
            is stored in checkpoints, and a resume with another one is refused.
        resume: continue from `checkpoints/last.safetensors` if there is one. On one CPU process
            the result equals that of an uninterrupted run bit for bit.
        quiet: print nothing.
        accelerator: accelerate's handle on processes and device; made when None.
        prefix_cache: let the task keep what the frozen layers below the adapter give
            (`crossadapt.tasks.prefix_cache`); one process only.

    Raises:
        UserError: the loss is not a number, the checkpoint is another run's, the disk is full.
    """
    device = updates.device_of(backbone)
    accelerator = accelerator or Accelerator(cpu=device.type == "cpu")
    precision = precision or choose_precision("auto", str(device))
    run = _Run(backbone, task, recipe, adapter, seed, precision, accelerator, Path(output))
    run.identity |= dict(identity or {})
    run.prefix_cache = prefix_cache
    return run.train(resume=resume, quiet=quiet)


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        recipe: Recipe,
        adapter: str,
        seed: int,
        precision: Precision,
        accelerator: Accelerator,
        output: Path,
    ) -> None:
        self.backbone, self.task, self.recipe, self.seed = backbone, task, recipe, seed
        self.adapter = adapter
        self.precision, self.output = precision, output
        self.main, self.rank = accelerator.is_main_process, accelerator.process_index
        self.world, self.device = accelerator.num_processes, accelerator.device
        updates.refuse_idle_parts(backbone, task)
        self.trained = updates.trained_tensors(backbone, adapter, task)
        self.kept = updates.kept_tensors(backbone, adapter)
        self.state = self.kept | updates.state_tensors(task)
        scales = attached(backbone, adapter).lr_scales
        self.optimiser = make_optimiser(
            self.trained, recipe, {f"adapter.{name}": scale for name, scale in scales.items()}
        )
        self.per_epoch = task.steps_per_epoch()
        self.total = self.per_epoch * recipe.epochs
        self.last = output / "checkpoints" / "last.safetensors"
        self.best = output / "checkpoints" / "best.safetensors"
        self.identity = {**recipe.identity(), "seed": seed, "precision": precision.name}
        self.prefix_cache = True
        self.chunk: int | None = None
        self.progress = Progress()

    def train(self, *, resume: bool, quiet: bool) -> FitResult:
        """All steps, validations and checkpoints; at the end the best tensors are put back."""
        resumed = resume and self.last.exists()
        if resumed:
            self.progress = load_checkpoint(
                self.last, self.trained, self.identity, self.optimiser, self.state
            )
        elif self.world > 1:
            updates.copy_from_first(self.trained.values())
        progress = self.progress
        self.started = time.monotonic() - progress.seconds
        self.saved_at, self.saved_step = time.monotonic(), progress.step
        self.events = Events(
            self.output / "events.jsonl" if self.main else None,
            after=progress.step if resumed else None,
        )
        display = Display(self.total, progress.step, quiet=quiet or not self.main)
        with self.events, StopSignals() as stop, display:
            self.display = display
            if not resumed:
                self.begin()
            self.cache_prefix()
            self.settle_chunk()
            meter = Meter(self.total)
            while progress.status == "running":
                epoch, start = divmod(progress.step, self.per_epoch)
                batches = self.task.batches(epoch, start)
                for _, rows in zip(range(start, self.per_epoch), batches, strict=True):
                    done = self.step(rows)
                    self.log(done, meter, len(rows))
                    at_end = progress.step % self.per_epoch == 0
                    stopping = stop.raised(self.world, self.device)
                    if at_end:  # before a stop, so that a resumed run need not validate first
                        self.end_epoch()
                        meter.restart()
                    elif stopping or self.checkpoint_due():
                        self.save()
                    if stopping and progress.status == "running":
                        return self.finish("interrupted")
            if self.best.exists():
                load_checkpoint(self.best, self.trained, self.identity, state=self.kept)
            set_strength(self.backbone, self.recipe.strength, self.adapter)
            return self.finish(progress.status)

    def begin(self) -> None:
        """Record what is about to happen and score the frozen model, without the adapter."""
        self.best.unlink(missing_ok=True)
        count = sum(p.numel() for p in self.trained.values())
        self.events.add("config", 0, total=self.total, trained=count, **self.identity)
        with frozen(self.backbone):
            self.progress.zero_shot = self.validate()
        self.events.add("zero-shot", 0, **self.progress.zero_shot)
        self.display.say(
            f"{self.total} steps of {self.recipe.batch_size} pairs, {count:,} trained values, "
            f"{self.precision.name} ({self.precision.reason})"
        )
        self.display.say(f"zero-shot: {format_scores(self.progress.zero_shot)}")

    def cache_prefix(self) -> None:
        """Have the task keep what no step changes, where it can, and say so."""
        left = self.recipe.epochs - self.progress.step // self.per_epoch
        wanted = self.prefix_cache and self.world == 1
        for found in updates.cache_prefix(
            self.task, self.backbone, self.adapter, self.precision, left if wanted else 0
        ):
            self.events.add("prefix", self.progress.step, **found.facts())
            self.display.say(found.sentence())

    def settle_chunk(self) -> None:
        """How many rows are encoded at a time; `auto` is decided once in the life of a run."""
        progress = self.progress
        if self.recipe.chunk != "auto":
            self.chunk = self.recipe.chunk
            return
        if not progress.chunk:
            updates.seed_step(self.seed, 0, self.rank)
            batch = self.collate(next(self.task.batches(0, 0)))
            self.backbone.adapters.train()
            model = self.backbone.model
            there = [*self.trained.values(), *model.parameters(), *model.buffers()]
            budget = chunking.budget(self.device, self.world)
            choice = chunking.choose(
                batch.pairs, budget, chunking.measure(self.encode, batch.inputs, there)
            )
            progress.chunk = choice.chunk
            if self.world > 1:
                progress.chunk = broadcast_object_list([choice.chunk])[0]
            self.events.add("chunk", progress.step, **choice.facts())
            self.display.say(choice.sentence())
        self.chunk = progress.chunk

    def collate(self, rows: np.ndarray) -> Batch:
        """This process's part of a global batch, on its device."""
        batch = self.task.collate(np.array_split(rows, self.world)[self.rank])
        return batch.to(str(self.device))

    def encode(self, stream: str, inputs: tuple[Tensor, ...]) -> Tensor:
        """Features of some rows of a stream, in the run's number format."""
        with self.precision.autocast():
            return self.task.encode(self.backbone, stream, inputs)

    def step(self, rows: np.ndarray) -> dict[str, float]:
        """One update; returns loss, lr, norm of the gradient before clipping, parts of the loss."""
        progress, recipe = self.progress, self.recipe
        updates.seed_step(self.seed, progress.step, self.rank)
        lr = learning_rate(recipe, progress.step, self.per_epoch)
        batch = self.collate(rows)

        def loss_of(features: dict[str, Tensor]) -> tuple[Tensor, Mapping[str, float]]:
            return self.task.loss(features, batch, self.backbone)

        self.backbone.adapters.train()
        loss, parts = gradient_cache.backward(self.encode, loss_of, batch.inputs, self.chunk)
        norm = updates.average_and_clip(list(self.trained.values()), recipe.clip, self.world)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            moment = f"step {progress.step + 1} of {self.total}"
            raise updates.diverged(loss, norm, lr, moment, recipe.lr, self.last)
        set_learning_rate(self.optimiser, lr)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        updates.limit_logit_scale(self.trained)
        updates.after_step(self.task)
        progress.step += 1
        return {"loss": loss, "lr": lr, "norm": norm, **parts}

    def log(self, done: Mapping[str, float], meter: Meter, pairs: int) -> None:
        """Write a step event now and then, and show the step."""
        step = self.progress.step
        if meter.count(step, pairs):
            peak = round(peak_memory(), 1)
            self.events.add("step", step, **done, pairs_per_second=meter.rate, peak_memory=peak)
            self.display.step(step, done["loss"], done["lr"], meter.rate)

    def end_epoch(self) -> None:
        """Validate when it is time, keep the best, decide whether to go on, checkpoint."""
        progress = self.progress
        epoch = progress.step // self.per_epoch
        done = progress.step == self.total
        if epoch % self.recipe.evaluate_every == 0 or done:
            scores = self.validate()
            improved = judge(progress, scores, self.task.headline, self.recipe)
            self.events.add("eval", progress.step, epoch=epoch, **scores)
            self.display.say(
                f"epoch {epoch}: {format_scores(scores)}{'  (best)' if improved else ''}"
            )
            if improved:
                self.write(self.best, resumable=False)
        if done and progress.status == "running":
            progress.status = "finished"
        self.save()

    def validate(self) -> dict[str, float]:
        """Scores of the first process, told to all of them so that all decide alike."""
        self.backbone.adapters.eval()
        with at_strength(self.backbone, self.recipe.strength, self.adapter):
            scores: list[Any] = [self.task.validate(self.backbone) if self.main else {}]
        return broadcast_object_list(scores)[0] if self.world > 1 else scores[0]

    def checkpoint_due(self) -> bool:
        """Whether the newest checkpoint is older than the recipe allows."""
        steps = self.recipe.checkpoint_steps
        if steps is not None and self.progress.step - self.saved_step >= steps:
            return True
        return time.monotonic() - self.saved_at > self.recipe.checkpoint_seconds

    def save(self) -> None:
        """Write the checkpoint to resume from."""
        self.write(self.last, resumable=True)

    def write(self, path: Path, *, resumable: bool) -> None:
        """Write one checkpoint, from the first process."""
        self.progress.seconds = time.monotonic() - self.started
        self.saved_at, self.saved_step = time.monotonic(), self.progress.step
        if self.main:
            optimiser = self.optimiser if resumable else None
            state = self.state if resumable else self.kept
            save_checkpoint(path, self.trained, self.progress, self.identity, optimiser, state)
            self.events.add("saved", self.progress.step, file=path.name)

    def finish(self, status: str) -> FitResult:
        """Record the end; what the caller gets."""
        p = self.progress
        self.events.add("end", p.step, status=status, best_step=p.best_step)
        return FitResult(
            status=status,
            step=p.step,
            total=self.total,
            trained=sum(tensor.numel() for tensor in self.trained.values()),
            zero_shot=p.zero_shot,
            best=p.best,
            best_step=p.best_step,
            seconds=p.seconds,
            peak_memory=peak_memory(),
            chunk=self.chunk,
        )
