"""A byte-level BPE tokenizer in CLIP's own layout, trained on the caller's texts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from crossadapt.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# The words, single digits and runs of other characters that CLIP never merges across.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
SMALLEST = 2 * len(ByteLevel.alphabet()) + 2


def train_bpe(corpus: Iterable[str], vocab_size: int) -> tuple[dict[str, int], list[tuple]]:
    """Vocabulary and merges learned from `corpus`, the same for the same texts in any process.

    The vocabulary is laid out as CLIP's: every byte, every byte at a word's end, the merges in
    the order learned, start-of-text, end-of-text. All bytes are present, so no text can produce
    an unknown token (which for CLIP is the end-of-text token and would move the pooling).

    Args:
        corpus: texts; their order does not matter to the counts.
        vocab_size: upper bound; a small corpus gives fewer merges.

    Raises:
        UserError: fewer entries than all bytes need, or no text.
    """
    if vocab_size < SMALLEST:
        raise UserError(
            f"vocab_size {vocab_size} is too small for a byte-level vocabulary.",
            where="tokenizer.vocab_size",
            fix=f"use at least {SMALLEST}",
        )
    texts = list(corpus)
    if not texts:
        raise UserError("There is no text to train the tokenizer on.", fix="pass some captions")
    alphabet = sorted(ByteLevel.alphabet())
    ends = [token + _WORD_END for token in alphabet]
    learner = Tokenizer(BPE(end_of_word_suffix=_WORD_END))
    learner.normalizer, learner.pre_tokenizer = _rules()
    learner.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=alphabet,
            # Pairs of equal count are merged in the order of their tokens' numbers. The trainer
            # numbers the bytes at a word's end as it meets them in a hash table, whose order is
            # another in every process; named here, they have their numbers before it starts.
            special_tokens=ends,
            end_of_word_suffix=_WORD_END,
            show_progress=False,
        ),
    )
    learned = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    for token in ends:
        vocabulary[token] = len(vocabulary)
    merges = []
    for left, right in learned:
        if len(vocabulary) == vocab_size - 2:
            break
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.append((left, right))
    for token in (START, END):
        vocabulary[token] = len(vocabulary)
    return vocabulary, merges


def clip_tokenizer(vocabulary: dict[str, int], merges: list[tuple], max_length: int) -> Any:
    """An ordinary Hugging Face CLIP tokenizer over a vocabulary from `train_bpe`."""
    from transformers import AutoTokenizer

    backend = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_WORD_END, unk_token=END)
    )
    backend.normalizer, backend.pre_tokenizer = _rules()
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]), (START, vocabulary[START]), False, False
    )
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "model_max_length": max_length,
    }
    # Through files: the classes' constructors differ between transformers 4.57 and 5.x.
    with TemporaryDirectory() as folder:
        backend.save(str(Path(folder) / "tokenizer.json"))
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def read_corpus(path: str | Path) -> list[str]:
    """Texts of a file, one per line; a missing or empty file is a `UserError`."""
    try:
        texts = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(
            "The tokenizer's corpus cannot be read.", where=f"{path}: {error.strerror}"
        ) from error
    return [text for text in texts if text]


def _rules() -> tuple[Any, Any]:
    normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return normalizer, splitter
