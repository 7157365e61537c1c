"""Texts to token ids, as each family was trained to read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from crossadapt.backbones.base import TokenBatch
from crossadapt.errors import UserError

_PROBE = "a"
# Case, accents (composed or not), contractions, digits, punctuation, spaces, other scripts.
PROBES = [
    "A red Door",
    "caf\u00e9 cafe\u0301 NA\u00cfVE \u00df \ufb01",
    "it's we'll don't e-mail foo_bar",
    "1234 3.14 #5, (x) \u2014 \u201cquoted\u201d?!",
    "  two  spaces\tand\nlines ",
    "\u6f22\u5b57 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \U0001f642",
    "",
]


class Tokens:
    """Texts to a `TokenBatch`; `tokenizer` is the Hugging Face one, None where there is none."""

    tokenizer: Any = None
    max_length: int = 0
    start: int = 0
    """Tokens in front of the words."""
    fusion_start: int | None = None
    """What stands in place of the first token when a text meets a picture; None for the same."""

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to ids and mask (B, L)."""
        raise NotImplementedError

    def make_room(self, ids: torch.Tensor, count: int) -> torch.Tensor:
        """Put `count` placeholders behind the first `start` tokens of every text (B, L).

        Positions, mask and pooling place follow from the longer ids as from any others. Only a
        text that would not fit the position table loses words, its last ones; it keeps its end.
        """
        raise NotImplementedError

    def words(self, text: str) -> list[int]:
        """Ids of the words alone, without start, end and padding."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def identity(self) -> str:
        """Hash of the vocabulary and its rules, for the fingerprint."""
        return "none" if self.tokenizer is None else _identity(self.tokenizer, self.max_length)


class ClipTokens(Tokens):
    """CLIP: start, text, end, cut to the longest text of the batch.

    Over-long texts lose their tail but keep the end-of-text token. Nothing after that token can
    change the features, so padding is whatever the tokenizer pads with.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: rows of the position table.
        eos_token_id: where the text tower pools; 2 is the old spelling of "the largest id".
        where: what to name in errors.

    Raises:
        UserError: the tokenizer does not end a text with the token the tower pools at.
    """

    start = 1

    def __init__(self, tokenizer: Any, max_length: int, eos_token_id: int, where: str) -> None:
        self.tokenizer = tokenizer
        self.max_length = min(max_length, tokenizer.model_max_length)
        ids = tokenizer(_PROBE)["input_ids"]
        pools_at = len(tokenizer) - 1 if eos_token_id == 2 else eos_token_id
        if ids[-1] != pools_at or pools_at in ids[:-1]:
            raise UserError(
                f"The tokenizer ends a text with token {ids[-1]}, "
                f"but the text tower pools at token {pools_at}.",
                where=where,
                fix="set text_config.eos_token_id in config.json to the id of the tokenizer's "
                "end-of-text token, or use the tokenizer the model was trained with",
            )
        self.eos = pools_at
        pad = tokenizer.pad_token_id
        self.pad = self.eos if pad is None else pad

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to ids and mask (B, L), L the longest real length in the batch."""
        return _padded(_ids(self.tokenizer, checked(texts), self.max_length), self.pad)

    def make_room(self, ids: torch.Tensor, count: int) -> torch.Tensor:
        """See `Tokens.make_room`; the placeholders are further start tokens."""
        room = self.max_length - count
        # Without a branch, so that a trace of the text tower holds for every length.
        ends = (ids == self.eos).int().argmax(dim=1)
        last = torch.where(ends >= room, self.eos, ids[:, :room][:, -1])
        ids = torch.cat([ids[:, :room][:, :-1], last[:, None]], dim=1)
        return torch.cat([ids[:, :1].expand(-1, 1 + count), ids[:, 1:]], dim=1)


class SiglipTokens(Tokens):
    """SigLIP: every text padded to the maximum length; padding is read as part of the text.

    The mask is True everywhere, because the tower was trained without one.
    """

    def __init__(self, tokenizer: Any, max_length: int, where: str) -> None:
        if tokenizer.pad_token_id is None:
            raise UserError(
                "The tokenizer has no padding token, which SigLIP needs.",
                where=where,
                fix="set pad_token in tokenizer_config.json",
            )
        self.tokenizer = tokenizer
        self.max_length = min(max_length, tokenizer.model_max_length)

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to ids and an all-True mask (B, L), L always the maximum length."""
        rows = self.tokenizer(
            checked(texts), truncation=True, max_length=self.max_length, padding="max_length"
        )["input_ids"]
        ids = torch.tensor(rows, dtype=torch.int64)
        return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    def make_room(self, ids: torch.Tensor, count: int) -> torch.Tensor:
        """See `Tokens.make_room`; padding makes room first, words only when there is too little."""
        room = self.max_length - count
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if ids.shape[1] > room:
            places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
            used = (places * (ids != pad)).amax(dim=1)
            if pad == eos:
                ended = used >= room
            else:
                last = ids.gather(1, (used - 1).clamp_min(0)[:, None]).squeeze(1)
                ended = (used > room) & (last == eos)
            ids = ids[:, :room].clone()
            ids[ended, -1] = eos
        return torch.cat([ids.new_full((len(ids), count), pad), ids], dim=1)


class BlipTokens(Tokens):
    """BLIP: class token, text, end, cut to the longest text of the batch under a mask.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: rows of the position table.
        vocabulary: rows of the token table.
        where: what to name in errors.

    Raises:
        UserError: the tokenizer puts nothing in front of a text, or knows more tokens than the
            model.
    """

    start = 1

    def __init__(self, tokenizer: Any, max_length: int, vocabulary: int, where: str) -> None:
        self.tokenizer = tokenizer
        self.max_length = min(max_length, tokenizer.model_max_length)
        ids, bare = (tokenizer(_PROBE, add_special_tokens=s)["input_ids"] for s in (True, False))
        if ids[1:-1] != bare or len(tokenizer) > vocabulary:
            raise UserError(
                f"The tokenizer does not fit: it makes {ids} of a one-letter text and knows "
                f"{len(tokenizer)} tokens, the model {vocabulary}.",
                where=where,
                fix="use the tokenizer the model was trained with",
            )
        pad = tokenizer.pad_token_id
        self.pad = ids[-1] if pad is None else pad
        self.fusion_start = _fusion_start(tokenizer, vocabulary)

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to ids and mask (B, L), L the longest real length in the batch."""
        return _padded(_ids(self.tokenizer, checked(texts), self.max_length), self.pad)

    @property
    def identity(self) -> str:
        """Hash of the vocabulary, its rules, and what starts a text in the fusion tower."""
        return f"{super().identity}:{self.fusion_start}"


def _fusion_start(tokenizer: Any, vocabulary: int) -> int | None:
    """The id of BLIP's [ENC].

    BLIP appended [DEC] and [ENC] to BERT's vocabulary. Converted checkpoints keep both rows of the
    token table, but their tokenizers often know BERT's own 30,522 tokens only.
    """
    known = tokenizer.get_vocab().get("[ENC]")
    if known is not None:
        return known
    return vocabulary - 1 if len(tokenizer) == vocabulary - 2 else None


class MissingTokens(Tokens):
    """Stands where a backbone has no tokenizer; using it is an error, never a guess."""

    def __init__(self, where: str, fix: str) -> None:
        self.where, self.fix = where, fix

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Always raises `UserError`."""
        raise UserError("This backbone has no tokenizer.", where=self.where, fix=self.fix)


def make_tokens(tokenizer: Any, config: Any, where: str) -> Tokens:
    """The tokenising rule of the family that `config` (CLIP, SigLIP or BLIP) belongs to."""
    text = config.text_config
    if config.model_type == "blip":
        return BlipTokens(tokenizer, text.max_position_embeddings, text.vocab_size, where)
    if config.model_type == "siglip":
        return SiglipTokens(tokenizer, text.max_position_embeddings, where)
    return ClipTokens(tokenizer, text.max_position_embeddings, text.eos_token_id, where)


def cut(tokens: TokenBatch) -> TokenBatch:
    """Drop the columns that are padding in every row; ids come out as int64.

    A family that reads its padding marks it as text, so nothing is cut there.
    """
    used = int(tokens.mask.any(dim=0).nonzero().max()) + 1
    return TokenBatch(tokens.ids[:, :used].long(), tokens.mask[:, :used])


def checked(texts: Sequence[str]) -> list[str]:
    """`texts` as a list; anything but a non-empty list of strings is a `UserError`."""
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"Expected a non-empty list of texts, got {type(texts).__name__}.",
            fix="pass a list of strings, e.g. tokenize(['a red door'])",
        )
    return list(texts)


def _ids(tokenizer: Any, texts: list[str], max_length: int) -> list[list[int]]:
    """Ids of each text, special tokens included, cut to `max_length`, not padded."""
    encoded = tokenizer(texts, truncation=True, max_length=max_length, padding=False)
    return encoded["input_ids"]


def _padded(rows: list[list[int]], pad: int) -> TokenBatch:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return TokenBatch(ids, mask)


def _identity(tokenizer: Any, max_length: int) -> str:
    """Hash of the vocabulary and of what the tokenizer does, the same in every library release.

    How a release prints or stores its rules changes; what they do to these texts does not.
    """
    facts = [
        max_length,
        sorted(tokenizer.get_vocab().items()),
        _ids(tokenizer, PROBES, max_length),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
