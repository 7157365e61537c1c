"""Accuracy on test pictures, of frozen, adapted or cached models, on known and on new classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossadapt.adapters.attach import active
from crossadapt.adapters.classifier import class_companion, class_logits
from crossadapt.backbones.precision import Precision
from crossadapt.evaluation.classification import ClassificationResult, classify, join
from crossadapt.layers.class_cache import SCALE
from crossadapt.tasks.class_features import class_texts

if TYPE_CHECKING:
    from crossadapt.backbones.base import Backbone
    from crossadapt.training.few_shot_data import FewShotData, Pictures


def measure_classes(
    backbone: Backbone,
    data: FewShotData,
    templates: Sequence[str],
    protocol: str,
    precision: Precision,
    features: Callable[[Pictures], Tensor],
) -> ClassificationResult:
    """Test accuracy with whatever adapter is active; base and novel apart where data has both.

    Novel classes are chosen among themselves, as CoOp measures them.

    Args:
        backbone: encodes the class names.
        data: with the test pictures.
        templates: sentences for the class names.
        protocol: written into the result.
        precision: of the text encoder.
        features: gives the features (M, C) of pictures, of length one.
    """

    def measure(pictures: Pictures) -> ClassificationResult:
        images = features(pictures)
        return measure_pictures(backbone, pictures, images, templates, protocol, precision)

    result = measure(data.test)
    return result if data.novel is None else join(result, measure(data.novel))


def measure_pictures(
    backbone: Backbone,
    pictures: Pictures,
    images: Tensor,
    templates: Sequence[str],
    protocol: str,
    precision: Precision,
) -> ClassificationResult:
    """Accuracy among the classes that the pictures name, from their features (M, C)."""
    logits = logits_for(backbone, images, pictures.names, templates, precision)
    labels = pictures.labels.numpy()
    return classify(logits.numpy(), labels, pictures.names, pictures.groups, protocol)


def logits_for(
    backbone: Backbone,
    images: Tensor,
    names: Sequence[str],
    templates: Sequence[str],
    precision: Precision,
) -> Tensor:
    """Logits (M, N) of picture features (M, C) for classes by name; on the CPU.

    A class that the active adapter's cache knows gets the cache's logit: this is how the columns
    of other data with some of the classes (ImageNet-A, -R) are cut out. One it does not know gets
    the logit of its text: a cache has nothing to say about it.
    """
    judge = class_companion(backbone)
    known = {} if judge is None else {name: at for at, name in enumerate(judge.classes)}
    found = torch.empty(len(images), len(names))
    mine = [at for at, name in enumerate(names) if name in known]
    others = [at for at, name in enumerate(names) if name not in known]
    if others:
        texts = class_texts(backbone, [names[at] for at in others], templates, precision)
        found[:, others] = SCALE * images @ texts.T
    adapter = active(backbone)
    if mine and judge is not None and adapter is not None:
        device = next(adapter.companion.parameters()).device  # type: ignore[union-attr]
        logits = class_logits(judge, images.to(device), adapter.strength)
        found[:, mine] = logits[:, [known[names[at]] for at in mine]]
    return found
