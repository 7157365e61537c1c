"""Evaluation protocols: what is ranked against what, and how many items there must be.

| name | rule |
|---|---|
| `pairs` | whatever is given, grouped as given: every text against all images and back |
| `flickr30k-1k` | Karpathy test split of Flickr30k: 1,000 images with 5 captions each |
| `coco-5k` | Karpathy test split of COCO: 5,000 images; all 25,010 captions or the first 5 each |
| `coco-1k-folds` | the same 5,000 images in five folds of 1,000 in file order; mean over folds |

Those of the published text-video sets are in `video_protocols`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from crossadapt.errors import UserError, did_you_mean
from crossadapt.evaluation.inputs import (
    Features,
    Groups,
    as_matrix,
    as_names,
    check_widths,
    encode_groups,
)
from crossadapt.evaluation.metrics import (
    DIRECTIONS,
    DirectionMetrics,
    QueryRanks,
    RetrievalResult,
)
from crossadapt.evaluation.ranks import (
    DEFAULT_BLOCK,
    STRIPE_BLOCK,
    Ranks,
    Similarity,
    rank_both,
    rank_codes,
    rank_stripes,
)

Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(numbers of texts (n,), numbers of images (m,)) to scores (n, m), larger is better."""
_Ranker = Callable[[np.ndarray, np.ndarray], tuple[Ranks, Ranks]]
"""(numbers of texts (n,), numbers of images (m,)) to text to image and image to text."""


@dataclass(frozen=True)
class Protocol:
    """A rule of evaluation; its `name` is written into every output."""

    name: str
    definition: str
    """What is measured, in words for a reader of the report."""
    check: Callable[[np.ndarray, np.ndarray], None] | None = None
    """Given the group numbers of images (N,) and texts (M,), raises `UserError` on wrong sizes."""
    folds: int = 1
    """Images are cut into so many folds in the order given; metrics are means over folds."""
    grouped_captions: bool = False
    """Image to text: each group of captions counts as one item, with its best caption's score."""


_PROTOCOLS: dict[str, Protocol] = {}


def register_protocol(protocol: Protocol) -> Protocol:
    """Make `protocol` available to `evaluate` by its name; a name can be taken once."""
    if protocol.name in _PROTOCOLS:
        raise UserError(
            f"the protocol {protocol.name!r} is already registered", fix="choose another name"
        )
    _PROTOCOLS[protocol.name] = protocol
    return protocol


def protocol_names() -> list[str]:
    """Names of all registered protocols, sorted."""
    return sorted(_PROTOCOLS)


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`; an unknown name is a `UserError` that names the nearest."""
    if name not in _PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}", fix=did_you_mean(name, _PROTOCOLS))
    return _PROTOCOLS[name]


def evaluate(
    image_features: Features,
    text_features: Features,
    image_groups: Groups,
    text_groups: Groups,
    protocol: str = "pairs",
    *,
    similarity: Similarity = "cosine",
    block: int = DEFAULT_BLOCK,
) -> RetrievalResult:
    """Measure retrieval in both directions under a protocol.

    Args:
        image_features: (N, D), torch or numpy; one row per distinct image, in file order.
        text_features: (M, D), one row per caption.
        image_groups: N group names.
        text_groups: M group names; a text and an image of the same group belong together.
        protocol: one of `protocol_names()`.
        similarity: "cosine" or "dot".
        block: scores held at once, see `ranks.rank`.

    Raises:
        UserError: bad features, a text without image or image without text, unknown protocol, or
            sizes other than the protocol's.
    """
    rule = get_protocol(protocol)
    images = as_matrix(image_features, "image features")
    texts = as_matrix(text_features, "text features")
    check_widths(images, texts, "image and text features")
    image_codes, text_codes = encode_groups(
        as_names(image_groups, len(images), "image groups"),
        as_names(text_groups, len(texts), "text groups"),
    )

    def ranker(t: np.ndarray, i: np.ndarray) -> tuple[Ranks, Ranks]:
        # Everything is no copy.
        some_texts = texts if len(t) == len(texts) else texts[t]
        some_images = images if len(i) == len(images) else images[i]
        sides = (some_texts, some_images, text_codes[t], image_codes[i])
        if not rule.grouped_captions:
            return rank_both(*sides, similarity, block)
        back = (some_images, some_texts, image_codes[i], text_codes[t])
        return rank_codes(*sides, similarity, block), rank_codes(*back, similarity, block, True)

    return _measure(rule, image_codes, text_codes, ranker, similarity)


def evaluate_scores(
    scores: Scores | Mapping[str, Scores],
    image_groups: Groups,
    text_groups: Groups,
    protocol: str = "pairs",
    *,
    similarity: str,
    block: int = STRIPE_BLOCK,
) -> RetrievalResult:
    """`evaluate` for a similarity that is no product of two vectors.

    Args:
        scores: see `Scores`; asked for one block at a time, twice for every pair. Or one each for
            ``text_to_image`` and ``image_to_text``; a block holds the whole gallery of its queries.
        image_groups: N group names.
        text_groups: M group names.
        protocol: one of `protocol_names()`.
        similarity: what the scores are, for the record.
        block: scores asked for at once.
    """
    rule = get_protocol(protocol)
    image_codes, text_codes = encode_groups(
        as_names(image_groups, len(image_groups), "image groups"),
        as_names(text_groups, len(text_groups), "text groups"),
    )

    both = scores if isinstance(scores, Mapping) else dict.fromkeys(DIRECTIONS, scores)

    def ranker(t: np.ndarray, i: np.ndarray) -> tuple[Ranks, Ranks]:
        codes = (text_codes[t], image_codes[i])
        forward, backward = (both[direction] for direction in DIRECTIONS)
        return (
            rank_stripes(lambda stripe: forward(t[stripe], i), *codes, block),
            rank_stripes(
                lambda stripe: backward(t, i[stripe]).T, *codes[::-1], block, rule.grouped_captions
            ),
        )

    return _measure(rule, image_codes, text_codes, ranker, similarity)


def _measure(
    rule: Protocol,
    image_codes: np.ndarray,
    text_codes: np.ndarray,
    ranker: _Ranker,
    similarity: str,
) -> RetrievalResult:
    if rule.check is not None:
        rule.check(image_codes, text_codes)
    codes = {"text_to_image": text_codes, "image_to_text": image_codes}
    fold_of_group = _folds(image_codes, int(text_codes.max()), rule.folds)
    low = {name: np.empty(len(own), np.int64) for name, own in codes.items()}
    high = {name: np.empty(len(own), np.int64) for name, own in codes.items()}
    parts: dict[str, list[DirectionMetrics]] = {name: [] for name in codes}
    for fold in range(rule.folds):
        t = np.flatnonzero(fold_of_group[text_codes] == fold)
        i = np.flatnonzero(fold_of_group[image_codes] == fold)
        size = len(np.unique(text_codes[t])) if rule.grouped_captions else len(t)
        for name, queries, gallery, found in zip(
            DIRECTIONS, (t, i), (len(i), size), ranker(t, i), strict=True
        ):
            low[name][queries], high[name][queries] = found.optimistic, found.pessimistic
            parts[name].append(DirectionMetrics.from_ranks(found, gallery))
    metrics = {
        name: found[0] if rule.folds == 1 else DirectionMetrics.mean(found)
        for name, found in parts.items()
    }
    details = {name: QueryRanks(Ranks(low[name], high[name]), own) for name, own in codes.items()}
    return RetrievalResult(
        protocol=rule.name,
        similarity=similarity,
        images=len(image_codes),
        texts=len(text_codes),
        groups=int(image_codes.max()) + 1,
        folds=rule.folds,
        text_to_image=metrics["text_to_image"],
        image_to_text=metrics["image_to_text"],
        details=details,
    )


def _folds(image_codes: np.ndarray, last_text: int, folds: int) -> np.ndarray:
    """Fold of each group (G,), following the order of the images; protocols with folds check
    that each image is a group of its own."""
    fold = np.zeros(max(int(image_codes.max()), last_text) + 1, np.int64)
    if folds > 1:
        fold[image_codes] = np.arange(len(image_codes)) * folds // len(image_codes)
    return fold


def _published(
    name: str, images: int, texts: tuple[int, ...], exact: bool
) -> Callable[[np.ndarray, np.ndarray], None]:
    """A size check: one group per image, five captions for each (at least, unless `exact`)."""

    def check(image_codes: np.ndarray, text_codes: np.ndarray) -> None:
        own = len(np.unique(image_codes))
        if len(image_codes) != images or len(text_codes) not in texts or own != images:
            wanted = " or ".join(f"{n:,}" for n in texts)
            raise UserError(
                f"{name} wants {images:,} images, each its own group, and {wanted} texts",
                where=f"found {len(image_codes):,} images in {own:,} groups "
                f"and {len(text_codes):,} texts",
                fix="select the Karpathy test split, one row per image in file order, "
                "or use the protocol 'pairs'",
            )
        per_image = np.bincount(text_codes, minlength=images)
        wrong = per_image[:images] != 5 if exact else per_image[:images] < 5
        if wrong.any() or len(per_image) > images:
            raise UserError(
                f"{name} wants {'exactly' if exact else 'at least'} 5 captions per image",
                where=f"found {int(per_image.min())} to {int(per_image.max())} per group in "
                f"{len(per_image):,} groups",
                fix="check the groups: a caption carries the group of its image",
            )

    return check


_COCO = (25_010, 25_000)
_PAIRS = """
Every text is ranked against all images of the split and every image against all texts. A query is
answered when any item of its own group is found.
"""
_FLICKR = """
Flickr30k, Karpathy test split: 1,000 images with five captions each. Text to image: rank of the
one right image among 1,000. Image to text: rank of the best of the five own captions among all
5,000.
"""
_COCO_5K = """
COCO, Karpathy test split: 5,000 images and all their captions (25,010, or 25,000 when only the
first five of each are kept). Image to text: rank of the best own caption among all.
"""
_COCO_1K = """
COCO, Karpathy test split cut into five folds of 1,000 images in file order, each with the captions
of its own images; every number is the mean over the five folds.
"""
for _protocol in (
    Protocol("pairs", _PAIRS),
    Protocol("flickr30k-1k", _FLICKR, _published("flickr30k-1k", 1000, (5000,), True)),
    Protocol("coco-5k", _COCO_5K, _published("coco-5k", 5000, _COCO, False)),
    Protocol("coco-1k-folds", _COCO_1K, _published("coco-1k-folds", 5000, _COCO, False), folds=5),
):
    register_protocol(_protocol)
