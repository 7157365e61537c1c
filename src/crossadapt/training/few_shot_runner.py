"""One few-shot run: what is attached, given the examples, trained, chosen and measured."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from crossadapt.adapters.attach import activate, attach, attached, detach, frozen, set_strength
from crossadapt.adapters.classifier import Support, class_companion
from crossadapt.adapters.folder import load_adapter
from crossadapt.adapters.registry import method_of
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.precision import Precision
from crossadapt.evaluation.classification import ClassificationResult
from crossadapt.layers.feature_cache import mean_of_views
from crossadapt.tasks.class_features import class_texts, views_of
from crossadapt.tasks.encode import encode_images
from crossadapt.tasks.few_shot import (
    FewShotConfig,
    FewShotTask,
    LabelledFeatures,
    search_sharpness,
)
from crossadapt.tasks.few_shot_towers import TowerFewShotTask
from crossadapt.training.config import Recipe
from crossadapt.training.events import peak_memory
from crossadapt.training.few_shot_data import FewShotData, Pictures
from crossadapt.training.few_shot_measure import measure_classes
from crossadapt.training.job import TrainJob
from crossadapt.training.loop import FitResult, fit
from crossadapt.training.record import plain
from crossadapt.training.run import (
    _check_end,
    method_config,
)

WHOLE_POOL = 2000
"""Training pictures up to which the views of all of them are encoded."""


class FewShotRun:
    """One run: what it attached, and how it is measured."""

    def __init__(
        self,
        job: TrainJob,
        options: FewShotConfig,
        backbone: HFBackbone,
        precision: Precision,
        data: FewShotData,
        templates: tuple[str, ...],
    ) -> None:
        self.job, self.options, self.data, self.templates = job, options, data, templates
        self.backbone, self.precision = backbone, precision
        self.config = method_config(job)
        self.cached = method_of(self.config).few_shot
        if self.cached:
            own: dict[str, Any] = {"classes": data.seen, "shots": options.shots}
            if self.config.alpha is None:
                own["alpha"] = data.classes.known.alpha
            self.config = replace(self.config, **own)
        # CoOp's prompts take the place of the sentence around the class name.
        self.own_templates = ("{}",) if job.method == "coop" else templates
        self.official = job.protocol == "tip-official"
        picked = data.test if self.official else data.val
        self.held_out = picked
        self._known: dict[tuple[str, ...], torch.Tensor] = {}

    def identity(self, data: str) -> dict[str, Any]:
        """What makes the run what it is, for checkpoints."""
        return {
            "data": data,
            "backbone": self.backbone.fingerprint,
            "method": self.job.method,
            "config": plain(self.config),
            "task": self.job.task,
            "task_options": {f.name: getattr(self.options, f.name) for f in fields(self.options)},
            "protocol": self.job.protocol,
            "label": self.options.label,
        }

    def train(self, recipe: Recipe, fingerprint: str) -> FitResult:
        """Attach the method, give it the examples, and train it if it is to be trained."""
        started = time.monotonic()
        if self.cached:
            task = self._cached_task(recipe)
        else:
            attach(self.backbone, self.config, seed=self.job.seed)
            task = self._tower_task(recipe)
        adapter = attached(self.backbone, "default")
        if not adapter.trained():
            set_strength(self.backbone, recipe.strength)
            scores = task.validate(self.backbone)
            with frozen(self.backbone):
                zero = task.validate(self.backbone)
            seconds = time.monotonic() - started
            return FitResult("not trained", 0, 0, 0, zero, scores, 0, seconds, peak_memory())
        result = fit(
            self.backbone,
            task,
            recipe,
            output=Path(self.job.output),
            seed=self.job.seed,
            precision=self.precision,
            identity=self.identity(fingerprint),
            resume=self.job.resume,
            quiet=self.job.quiet,
        )
        _check_end(result, task, Path(self.job.output))
        self.backbone.adapters.eval()
        return replace(result, seconds=time.monotonic() - started)

    def _cached_task(self, recipe: Recipe) -> FewShotTask:
        """Compute all features once, build the cache, and the task that trains it."""
        data, backbone = self.data, self.backbone
        views = self._views()
        text = class_texts(backbone, data.seen, self.templates, self.precision)
        text_keys = self._coop_texts()
        attach(backbone, self.config, seed=self.job.seed)
        judge = class_companion(backbone)
        if judge is None:
            raise RuntimeError("the method has no class companion")
        judge.build(Support(mean_of_views(views), text, text_keys))
        held_out = self._features(self.held_out)
        return FewShotTask(
            views,
            data.support.labels,
            text,
            validation=held_out,
            batch_size=recipe.batch_size,
            seed=self.job.seed,
        )

    def _views(self) -> torch.Tensor:
        """Features (V, R, C) of the views of the examples.

        Those of a small training split are computed for all its pictures: runs with other seeds
        and other numbers of shots then find them in the cache.
        """
        whole = len(self.data.pool.items) <= WHOLE_POOL
        pictures = self.data.pool if whole else self.data.support
        found = views_of(
            self.backbone,
            pictures.pixels,
            pictures.items,
            self.options.views,
            self.options.view,
            0 if whole else self.job.seed,
            precision=self.precision,
            cache=self.job.cache,
        )
        return found[:, torch.from_numpy(self.data.drawn)] if whole else found

    def _coop_texts(self) -> torch.Tensor | None:
        """Class texts with the prompts of a CoOp adapter, for a text cache; None without one."""
        folder = getattr(self.config, "coop", "")
        if not folder:
            return None
        load_adapter(self.backbone, folder, name="coop")
        # The prompts stand for the sentence: CoOp trains them in front of the bare name.
        found = class_texts(self.backbone, self.data.seen, ("{}",), self.precision)
        activate(self.backbone, None)
        detach(self.backbone, "coop")
        return found

    def _tower_task(self, recipe: Recipe) -> FewShotTask:
        data = self.data
        picked = self.held_out
        return TowerFewShotTask(
            self.backbone,
            data.support.pixels,
            data.support.labels,
            data.seen,
            self.own_templates,
            view=self.options.view,
            validation=None if picked is None else (picked.pixels, picked.labels),
            batch_size=recipe.batch_size,
            seed=self.job.seed,
            precision=self.precision,
        )

    def _features(self, part: Pictures | None) -> LabelledFeatures | None:
        if part is None:
            return None
        return LabelledFeatures(self.features(part), part.labels)

    def features(self, pictures: Pictures) -> torch.Tensor:
        """Features (M, C) of pictures, length one: those of a cache's frozen towers come once."""
        if not self.cached:
            return encode_images(self.backbone, pictures.pixels, precision=self.precision)
        if pictures.items not in self._known:
            [found] = views_of(
                self.backbone,
                pictures.pixels,
                pictures.items,
                1,
                "none",
                0,
                precision=self.precision,
                cache=self.job.cache,
            )
            self._known[pictures.items] = torch.nn.functional.normalize(found, dim=-1)
        return self._known[pictures.items]

    def measure(self, own: bool = True) -> ClassificationResult:
        """Test accuracy with whatever adapter is active, by the method's own sentences or not."""
        return measure_classes(
            self.backbone,
            self.data,
            self.own_templates if own else self.templates,
            self.job.protocol,
            self.precision,
            self.features,
        )

    def choose(self) -> tuple[dict[str, Any], ClassificationResult]:
        """Search alpha and beta, and measure on the test split; what was chosen and how."""
        judge = class_companion(self.backbone)
        if judge is None:
            return {}, self.measure()
        start = (judge.alpha, judge.beta)
        said: dict[str, Any] = {"start": start, "alpha": start[0], "beta": start[1]}
        val = self._features(self.data.val)
        if not self.options.search or val is None:
            return {**said, "searched": False}, self.measure()
        first = (
            self.measure() if self.official and attached(self.backbone, "default").count() else None
        )
        adapter = attached(self.backbone, "default")
        known = self.data.classes.known.search
        largest = (
            self.options.search_beta or known[0],
            self.options.search_alpha or known[1],
        )
        alpha, beta, accuracy = search_sharpness(judge, val, largest, adapter.strength)
        judge.set_sharpness(alpha, beta)
        found = self.measure()
        said |= {"searched": True, "validation_accuracy": accuracy}
        if first is not None and first.metric("accuracy") > found.metric("accuracy"):
            judge.set_sharpness(*start)
            return said, first
        return {**said, "alpha": alpha, "beta": beta}, found
