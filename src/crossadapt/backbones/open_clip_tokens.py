"""Texts to token ids by open_clip's own tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from crossadapt.backbones.base import TokenBatch
from crossadapt.backbones.tokenizing import PROBES, Tokens, checked


class OpenClipTokens(Tokens):
    """What open_clip's tokenizer gives, cut to the longest text of the batch where that is exact.

    Args:
        tokenizer: a `SimpleTokenizer` (CLIP's byte pairs, inside the package) or an `HFTokenizer`.
        max_length: the model's context length.
        places: of a causal text tower that is read at the end of the text: ids (B, L) to the
            position (B,) it is read at; nothing behind it can matter. None for any other tower,
            whose texts keep the full padded length and a mask that is True everywhere.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, places: Callable[[Tensor], Tensor] | None
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.places = places
        # Byte pairs begin with a start token and are padded with zeros; Hugging Face's differ.
        inner = getattr(tokenizer, "tokenizer", None)
        self.start = 1 if inner is None else int(_starts(inner))
        self.pad = 0 if inner is None else inner.pad_token_id
        self.end = tokenizer.eot_token_id if inner is None else inner.eos_token_id

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to ids and mask (B, L)."""
        # A plan is counted with another default device, where ids could not be looked at.
        with torch.device("cpu"):
            return self._batch(self.tokenizer(checked(texts), context_length=self.max_length))

    def _batch(self, ids: Tensor) -> TokenBatch:
        if self.places is None:
            return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
        ends = self.places(ids)
        longest = int(ends.max()) + 1
        return TokenBatch(ids[:, :longest], torch.arange(longest) <= ends[:, None])

    def make_room(self, ids: Tensor, count: int) -> Tensor:
        """See `Tokens.make_room`; padding makes room first, words only when there is too little."""
        room = self.max_length - count
        if ids.shape[1] > room:
            ids = ids[:, :room].clone()
            if self.end is not None:
                ids[~(ids == self.end).any(1), -1] = self.end
        front = ids[:, :1] if self.start else ids.new_full((len(ids), 1), self.pad)
        return torch.cat([ids[:, : self.start], front.expand(-1, count), ids[:, self.start :]], 1)

    def words(self, text: str) -> list[int]:
        """See `Tokens.words`."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return self.tokenizer.encode(text)
        return inner(self.tokenizer.clean_fn(text), add_special_tokens=False)["input_ids"]

    @property
    def identity(self) -> str:
        """Hash of what the tokenizer does to a set of texts, and of its vocabulary."""
        return _identity(self.tokenizer, self.max_length)


@lru_cache(maxsize=8)
def _identity(tokenizer: Any, max_length: int) -> str:
    inner = getattr(tokenizer, "tokenizer", None)
    vocabulary = tokenizer.encoder if inner is None else inner.get_vocab()
    ids = tokenizer(PROBES, context_length=max_length)
    facts = [max_length, sorted(vocabulary.items()), ids.tolist()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _starts(tokenizer: Any) -> bool:
    """Whether a Hugging Face tokenizer puts a token in front of the words."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    return tokenizer("a")["input_ids"][: len(bare)] != bare
