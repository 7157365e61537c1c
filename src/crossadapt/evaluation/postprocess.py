"""Post-processing of scores: dual softmax and query-bank normalisation, as rows of their own.

Both need other queries than the one at hand, which no search has: they rank a whole test set, or
against a bank of training queries. The published numbers of the adapters built here are without
them, so results are returned beside the plain ones and never in their place.

Dual softmax (CAMoE, arXiv 2109.04290): ``S'(q, g) = S(q, g) * softmax_q(t S(q, g))``, the softmax
over all queries of the direction. Evaluation code exists that computes it for text to video only
and uses the transpose for video to text; there the factor normalises over the *gallery* and leaves
every ranking as it was. Here each direction normalises over its own queries.

Query bank (QB-Norm, arXiv 2112.12777): with P the scores of bank queries b,
``S'(q, g) = exp(beta S(q, g)) / sum_b exp(beta P(b, g))``; the dynamic form does so only for
queries whose first hit is the first hit of some bank query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from crossadapt.errors import UserError
from crossadapt.evaluation.inputs import Features, Groups, as_matrix, check_widths, unit_rows
from crossadapt.evaluation.metrics import RetrievalResult
from crossadapt.evaluation.protocols import evaluate, evaluate_scores

PLAIN, DUAL_SOFTMAX, QUERY_BANK = "plain", "dual softmax", "query bank"


def dual_softmax(scores: np.ndarray, temperature: float = 100.0) -> np.ndarray:
    """Scores times their softmax over the queries.

    Args:
        scores: cosines (Q, G), all queries of the test set in rows.
        temperature: factor on the scores inside the softmax, above 0.
    """
    _positive(temperature, "temperature")
    scores = np.asarray(scores, np.float64)
    raised = np.exp(temperature * (scores - scores.max(axis=0, keepdims=True)))
    return scores * raised / raised.sum(axis=0, keepdims=True)


def query_bank(
    scores: np.ndarray, bank: np.ndarray, beta: float = 20.0, *, dynamic: bool = True
) -> np.ndarray:
    """Scores normalised by a bank of other queries, as logarithms: only order within a row counts.

    Args:
        scores: cosines (Q, G).
        bank: cosines (B, G) of the bank's queries with the same gallery; from training data.
        beta: inverse temperature, above 0.
        dynamic: leave rows alone whose best item is no bank query's best.
    """
    _positive(beta, "beta")
    scores, bank = np.asarray(scores, np.float64), np.asarray(bank, np.float64)
    if bank.ndim != 2 or not len(bank) or bank.shape[1] != scores.shape[1]:
        raise UserError(
            f"a bank of shape {bank.shape} does not fit scores of shape {scores.shape}",
            where="bank",
            fix="score the bank's queries against the same gallery",
        )
    top = bank.max(axis=0)
    hubness = beta * top + np.log(np.exp(beta * (bank - top)).sum(axis=0))
    normalised = beta * scores - hubness
    if not dynamic:
        return normalised
    hubs = np.unique(bank.argmax(axis=1))
    active = np.isin(scores.argmax(axis=1), hubs)
    return np.where(active[:, None], normalised, scores)


def evaluate_postprocessed(
    image_features: Features,
    text_features: Features,
    image_groups: Groups,
    text_groups: Groups,
    protocol: str = "pairs",
    *,
    temperature: float = 100.0,
    bank_images: Features | None = None,
    bank_texts: Features | None = None,
    beta: float = 20.0,
) -> dict[str, RetrievalResult]:
    """The plain result and those with post-processing, by label; all scores are held in memory.

    Args:
        image_features: (N, D); vectors of pictures or videos.
        text_features: (M, D).
        image_groups: N group names.
        text_groups: M group names.
        protocol: one of `protocol_names()`.
        temperature: of the dual softmax.
        bank_images: (A, D), from training data; queries of the bank for image to text.
        bank_texts: (B, D), from training data; queries of the bank for text to image. Both banks
            or none.
        beta: of the query bank.

    Returns:
        ``plain``, ``dual softmax`` and, when banks are given, ``query bank``. The field
        `similarity` of each result names the processing with its number.

    Raises:
        UserError: as `evaluate`, or one bank without the other.
    """
    if (bank_images is None) != (bank_texts is None):
        raise UserError(
            "one query bank is missing",
            where="bank_images" if bank_images is None else "bank_texts",
            fix="give training images and training texts, or neither",
        )
    groups = (image_groups, text_groups)
    results = {PLAIN: evaluate(image_features, text_features, *groups, protocol)}
    images = unit_rows(as_matrix(image_features, "image features"), "image features")
    texts = unit_rows(as_matrix(text_features, "text features"), "text features")
    scores = texts @ images.T
    results[DUAL_SOFTMAX] = _both(
        dual_softmax(scores, temperature),
        dual_softmax(scores.T, temperature).T,
        groups,
        protocol,
        f"cosine, dual softmax at {temperature:g}",
    )
    if bank_images is not None and bank_texts is not None:
        asked = unit_rows(as_matrix(bank_texts, "bank texts"), "bank texts")
        shown = unit_rows(as_matrix(bank_images, "bank images"), "bank images")
        check_widths(asked, images, "bank texts and image features")
        check_widths(shown, texts, "bank images and text features")
        results[QUERY_BANK] = _both(
            query_bank(scores, asked @ images.T, beta),
            query_bank(scores.T, shown @ texts.T, beta).T,
            groups,
            protocol,
            f"cosine, query bank at {beta:g}",
        )
    return results


def labelled_rows(results: Mapping[str, RetrievalResult]) -> list[tuple[str, ...]]:
    """Table rows under ``("Scores", *TABLE_HEADER)``: the label, then the result's own row."""
    return [(label, *row) for label, result in results.items() for row in result.table_rows()]


def _both(
    text_to_image: np.ndarray,
    image_to_text: np.ndarray,
    groups: tuple[Groups, Groups],
    protocol: str,
    similarity: str,
) -> RetrievalResult:
    """A result whose directions come from two matrices, each (M texts, N images)."""
    found = [
        evaluate_scores(
            lambda texts, images, matrix=matrix: matrix[np.ix_(texts, images)],
            *groups,
            protocol,
            similarity=similarity,
        )
        for matrix in (text_to_image, image_to_text)
    ]
    forward, backward = found
    details = {}
    for result, direction in zip(found, ("text_to_image", "image_to_text"), strict=True):
        if result.details is not None:
            details[direction] = result.details[direction]
    return replace(forward, image_to_text=backward.image_to_text, details=details)


def _positive(value: float, name: str) -> None:
    if not value > 0:
        raise UserError(f"{name} is {value}", where=name, fix="give a number above 0")
