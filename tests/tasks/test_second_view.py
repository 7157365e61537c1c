"""Second views of texts: another text of the group, or fewer of one's own words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import small_run

from crossadapt.adapters.attach import attach
from crossadapt.backbones import tiny
from crossadapt.data.manifest import Manifest
from crossadapt.errors import UserError
from crossadapt.methods.apollo import ApolloConfig
from crossadapt.tasks.retrieval import RetrievalConfig, RetrievalTask
from crossadapt.tasks.second_view import SecondViews

PIXELS = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)


class Spy:
    """A tokenizer that keeps the texts it was given."""

    def __init__(self, backbone) -> None:
        self.real, self.texts = backbone.tokenize, []

    def __call__(self, texts):
        self.texts.append(list(texts))
        return self.real(texts)


def texts_of(rows: Manifest, wanted: list[int], times: int = 30) -> list[list[str]]:
    backbone = tiny("clip")
    views = SecondViews(backbone, rows, "crop")
    views._tokenize = spy = Spy(backbone)
    torch.manual_seed(0)
    for _ in range(times):
        views(np.asarray(wanted), PIXELS[: len(wanted)])
    return spy.texts


def test_another_text_of_the_same_group_each_as_often() -> None:
    rows = small_run.manifest(4, captions=3)
    own = rows.texts[0]
    found = [texts[0] for texts in texts_of(rows, [0], times=60)]
    others = {rows.texts[1], rows.texts[2]}
    assert own not in found
    assert set(found) == others
    assert all(found.count(text) >= 15 for text in others)


def test_a_text_alone_loses_words_and_never_all_of_them() -> None:
    rows = Manifest.from_rows(
        {"item": f"openmoji:{i}", "text": text}
        for i, text in enumerate(["a small red door in a wall", "door"])
    )
    found = texts_of(rows, [0, 1])
    assert all(texts[1] == "door" for texts in found)
    words = rows.texts[0].split()
    for texts in found:
        kept = texts[0].split()
        assert kept
        remaining = iter(words)
        assert all(word in remaining for word in kept), "order kept"
    share = np.mean([len(texts[0].split()) for texts in found]) / len(words)
    assert 0.7 < share < 0.9


def task(kind: str) -> RetrievalTask:
    backbone = tiny("clip")
    attach(backbone, ApolloConfig())
    config = RetrievalConfig(view=kind)  # type: ignore[arg-type]
    return RetrievalTask(
        backbone, small_run.manifest(), small_run.pixels(), batch_size=5, config=config
    )


@pytest.mark.parametrize("kind", ["crop", "pose", "restyle"])
def test_pictures_are_changed_and_keep_their_shape(kind) -> None:
    batch = task(kind).collate(np.arange(5))
    view, own = batch.inputs["image_view"][0], batch.inputs["image"][0]
    assert view.shape == own.shape
    assert view.dtype == torch.uint8
    assert not torch.equal(view, own)


def test_methods_without_a_second_view_get_none() -> None:
    made = RetrievalTask(tiny("clip"), small_run.manifest(), small_run.pixels(), batch_size=5)
    assert set(made.collate(np.arange(5)).inputs) == {"image", "text"}


def test_an_unknown_view_is_an_error() -> None:
    with pytest.raises(UserError, match="did you mean 'crop'"):
        RetrievalConfig(view="crops")  # type: ignore[arg-type]
