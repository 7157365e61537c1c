import numpy as np
import pytest
import torch
from tests import small_run

from crossadapt import backbones
from crossadapt.adapters.attach import attach
from crossadapt.adapters.registry import make_config
from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError
from crossadapt.tasks import objectives
from crossadapt.tasks.base import read_options
from crossadapt.tasks.retrieval import RetrievalConfig, RetrievalTask


def test_collate_gives_pixels_real_lengths_and_keys():
    backbone = backbones.tiny("clip")
    task = RetrievalTask(backbone, small_run.manifest(6, captions=2), small_run.pixels(6),
                         batch_size=2, captions="all")  # fmt: skip
    batch = task.collate(np.array([0, 2]))
    assert batch.inputs["image"][0].dtype == torch.uint8
    assert np.array_equal(batch.inputs["image"][0].numpy(), small_run.pixels(6)[:2])
    wanted = backbone.tokenize([task.train.texts[0], task.train.texts[2]])
    assert torch.equal(batch.inputs["text"][0], wanted.ids)
    assert torch.equal(batch.inputs["text"][1], wanted.mask)
    assert batch.targets["group"].tolist() == [0, 1]


def test_the_same_text_is_a_positive_whatever_its_case():
    rows = Manifest.from_rows(
        {"item": f"openmoji:{i}", "text": text}
        for i, text in enumerate(["Red  door", "red door", "blue boat"])
    )
    task = RetrievalTask(backbones.tiny("clip"), rows, small_run.pixels(3), batch_size=3)
    targets = task.collate(np.arange(3)).targets
    found = objectives.same(targets["group"], targets["text"])
    assert found.int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_batches_start_anywhere_and_repeat():
    _, task = small_run.prepare()
    whole = list(task.batches(1, 0))
    assert len(whole) == task.steps_per_epoch() == 4
    assert all(np.array_equal(a, b) for a, b in zip(whole[2:], task.batches(1, 2), strict=True))
    assert not np.array_equal(np.concatenate(whole), np.concatenate(list(task.batches(0, 0))))


@pytest.mark.parametrize("objective", ["info-nce", "sigmoid"])
def test_loss_reaches_both_towers(objective):
    backbone = backbones.tiny("siglip")
    task = RetrievalTask(backbone, small_run.manifest(), small_run.pixels(), batch_size=4,
                         objective=objective)  # fmt: skip
    batch = task.collate(np.arange(4))
    features = {
        name: task.encode(backbone, name, inputs).detach().requires_grad_()
        for name, inputs in batch.inputs.items()
    }
    task.loss(features, batch, backbone)[0].backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features.values())


def test_validation_scores():
    backbone, task = small_run.prepare()
    scores = task.validate(backbone)
    assert task.headline in scores
    assert 0 <= scores["rsum"] <= 600


def test_what_it_refuses():
    backbone = backbones.tiny("clip")
    one = Manifest.from_rows([{"item": "openmoji:1", "text": t} for t in ("a", "b")])
    with pytest.raises(UserError, match="nothing to tell apart"):
        RetrievalTask(backbone, one, small_run.pixels(1))
    with pytest.raises(UserError, match="no logit bias"):
        RetrievalTask(backbone, small_run.manifest(), small_run.pixels(), objective="sigmoid")
    with pytest.raises(UserError, match="no option 'frames'"):
        read_options(RetrievalConfig, {"frames": 1}, "retrieval")


def test_augmented_pictures_change_with_the_generator_only():
    backbone = backbones.tiny("clip")
    task = RetrievalTask(backbone, small_run.manifest(), small_run.pixels(), batch_size=4,
                         config=RetrievalConfig(augment="pose"))  # fmt: skip
    rows = np.arange(4)
    torch.manual_seed(1)
    first = task.collate(rows).inputs["image"][0]
    assert not np.array_equal(first.numpy(), small_run.pixels()[:4])
    assert not torch.equal(task.collate(rows).inputs["image"][0], first)
    torch.manual_seed(1)
    assert torch.equal(task.collate(rows).inputs["image"][0], first)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("method", ["cross-modal-adapter", "peft:lora"])
def test_token_drop_reaches_the_tower_that_runs(family, method):
    """PEFT methods run a copy of the model: the tokens must be dropped there."""
    backbone = backbones.tiny(family)
    attach(backbone, make_config(method))
    task = RetrievalTask(backbone, small_run.manifest(), small_run.pixels(), batch_size=4,
                         config=RetrievalConfig(token_drop=0.5))  # fmt: skip
    inputs = task.collate(np.arange(4)).inputs["image"]
    whole = backbone.encode_image(backbone.preprocess.normalise(inputs[0]))
    assert not torch.allclose(task.encode(backbone, "image", inputs), whole)
    again = backbone.encode_image(backbone.preprocess.normalise(inputs[0]))
    assert torch.equal(again, whole), "the hook stayed"


@pytest.mark.parametrize("options", [{"augment": "poses"}, {"token_drop": 1.0}])
def test_options_that_cannot_be_used(options):
    with pytest.raises(UserError, match=next(iter(options))):
        RetrievalConfig(**options)
