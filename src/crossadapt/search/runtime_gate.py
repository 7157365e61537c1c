"""Whether another runtime's vectors may stand for PyTorch's: compared on a sample, in numbers.

Two conditions, both on vectors of one embedder, PyTorch's taken at its precision:

* the cosine of every picture and every text with its vector from PyTorch is at least `MIN_COSINE`;
* mean Recall@1, 5 and 10 falls by at most `MAX_DROP` points. Where the sample has captions, a
  caption and its picture are right for each other, and both directions count. Where it has none,
  the picture that PyTorch in float32 ranks first for a text is the right one: a harder test, since
  neighbours of almost equal score are exchanged easily.

Texts are encoded in small batches of like length and some alone, with one that is too long for any
text tower; pictures in one batch and one alone. A trace that holds only for the shape it was made
with cannot pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crossadapt.evaluation.ranks import rank
from crossadapt.search.calibration import null_queries

if TYPE_CHECKING:
    from crossadapt.search.embedder import Embedder

MIN_COSINE = 0.999
MAX_DROP = 0.2
"""Points of mean recall."""
SAMPLE = 256
"""Pictures, and texts, at most."""
_GENERATED = 32
_DEPTHS = (1, 5, 10)
_BATCH = 16
_LONGEST = "a long story " * 60


@dataclass(frozen=True)
class Sample:
    """What the runtimes are compared on.

    Args:
        pixels: prepared pictures, uint8 (N, 3, H, W), at least one.
        texts: at least one.
        owners: the picture (its row) that each text describes; None where nobody knows.
        generated: whether the pictures are noise for want of any.
    """

    pixels: np.ndarray
    texts: tuple[str, ...]
    owners: tuple[int, ...] | None = None
    generated: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the comparison found; recall in points."""

    cosine_pictures: float
    """The least of all pictures."""
    cosine_texts: float
    recall_torch: float
    """Mean of Recall@1, 5 and 10."""
    recall: float
    """The same of the other runtime."""
    pictures: int
    texts: int
    captioned: bool
    """Whether right answers are known; else the first picture in float32 counts as right."""
    generated: bool

    @property
    def drop(self) -> float:
        """Points of recall lost; negative where some were won."""
        return self.recall_torch - self.recall

    @property
    def passed(self) -> bool:
        """Whether both conditions hold."""
        worst = min(self.cosine_pictures, self.cosine_texts)
        # Recall is a ratio of counts: at the limit itself a rounding error must not decide.
        return worst >= MIN_COSINE and self.drop <= MAX_DROP + 1e-9

    def __str__(self) -> str:
        what = "generated pictures" if self.generated else "pictures"
        return (
            f"least cosine {self.cosine_pictures:.5f} for pictures and {self.cosine_texts:.5f} for "
            f"texts (wanted {MIN_COSINE}), recall {self.drop:+.2f} points lost "
            f"(at most {MAX_DROP}), on {self.pictures} {what} and {self.texts} texts"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        kinds: dict[str, Any] = {"float": float, "int": int, "bool": bool}
        given: dict[str, Any] = {
            f.name: kinds[str(f.type)](values[f.name]) for f in dataclasses.fields(cls)
        }
        return cls(**given)


def generated_sample(embedder: Embedder) -> Sample:
    """Noise and everyday queries, the same every time, where there is nothing to embed yet."""
    shape = (_GENERATED, 3, *embedder.backbone.preprocess.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Sample(pixels, null_queries()[:_GENERATED], generated=True)


def sample_of(pixels: Sequence[np.ndarray], captions: Sequence[str | None]) -> Sample:
    """Pictures with one caption each, or None; everyday queries where fewer than two have any."""
    owners = tuple(row for row, caption in enumerate(captions) if caption)
    stacked = np.stack(pixels)
    if len(owners) < 2:
        return Sample(stacked, null_queries()[:SAMPLE])
    return Sample(stacked, tuple(str(captions[row]) for row in owners), owners)


def judge(torch_vectors: Vectors, vectors: Vectors, sample: Sample, exact: Vectors) -> Verdict:
    """Compare what two runtimes made of a sample; see the module's text.

    Args:
        torch_vectors: by PyTorch at the embedder's precision.
        vectors: by the other runtime.
        sample: what they are of.
        exact: by PyTorch in float32; says what is right where nobody else does.
    """
    owners, both = sample.owners, sample.owners is not None
    if owners is None:
        scores = exact.texts @ exact.pictures.T
        owners = tuple(int(row) for row in scores.argmax(axis=1))
    return Verdict(
        cosine_pictures=_least_cosine(torch_vectors.all_pictures, vectors.all_pictures),
        cosine_texts=_least_cosine(torch_vectors.all_texts, vectors.all_texts),
        recall_torch=_recall(torch_vectors, owners, both),
        recall=_recall(vectors, owners, both),
        pictures=len(sample.pixels),
        texts=len(sample.texts),
        captioned=both,
        generated=sample.generated,
    )


@dataclass(frozen=True)
class Vectors:
    """What one runtime made of a sample: unit vectors, and again those of rows encoded alone."""

    pictures: np.ndarray
    texts: np.ndarray
    lone_pictures: np.ndarray
    lone_texts: np.ndarray

    @property
    def all_pictures(self) -> np.ndarray:
        """Every vector of a picture."""
        return np.concatenate([self.pictures, self.lone_pictures])

    @property
    def all_texts(self) -> np.ndarray:
        """Every vector of a text."""
        return np.concatenate([self.texts, self.lone_texts])


def encode(embedder: Embedder, view: str, sample: Sample) -> Vectors:
    """Vectors of a sample by the runtime that the view has now, in batches of several shapes."""
    texts = sample.texts
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found = np.zeros((len(texts), embedder.dim), np.float32)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        found[rows] = embedder.texts([texts[row] for row in rows], view)
    lone = [texts[row] for row in (order[0], order[len(order) // 2], order[-1])] + [_LONGEST]
    return Vectors(
        embedder.pictures(sample.pixels, view),
        found,
        embedder.pictures(sample.pixels[:1], view),
        np.concatenate([embedder.texts([text], view) for text in lone]),
    )


def _least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of all rows; -1, the worst there is, where a vector is no number."""
    cosines = (one.astype(np.float64) * other).sum(axis=1)
    return float(np.nan_to_num(cosines, nan=-1.0, posinf=-1.0, neginf=-1.0).min())


def _recall(vectors: Vectors, owners: Sequence[int], both: bool) -> float:
    """Mean of Recall@1, 5 and 10, in points, text to picture or both ways."""
    if not np.isfinite(vectors.pictures).all() or not np.isfinite(vectors.texts).all():
        return 0.0
    right = [str(row) for row in owners]
    pictures = [str(row) for row in range(len(vectors.pictures))]
    ranks = [rank(vectors.texts, vectors.pictures, right, pictures)]
    if both:
        captioned = sorted(set(owners))
        own = [str(row) for row in captioned]
        ranks.append(rank(vectors.pictures[captioned], vectors.texts, own, right))
    hits = [np.mean(found.average <= depth) for found in ranks for depth in _DEPTHS]
    return float(100 * np.mean(hits))
